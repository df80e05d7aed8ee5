"""Where rows go: a file that agrees with the checkpoint, and a console of plain lines or of one live line."""

import contextlib
import io

from rich.console import Console
from tests import short_runs

from opencoca.train.metrics import ConsoleSink, JsonlSink, read_jsonl

shards, light = short_runs.shards, short_runs.light


def test_jsonl_keeps_rows_up_to_the_checkpoint(tmp_path):
    path = tmp_path / "metrics.jsonl"
    path.write_text('{"step": 1, "a": 1}\n{"step": 2, "a": 2}\n{"step": 3, "a": 3}\n{"step": 3, "a"')
    with contextlib.closing(JsonlSink(path, resumed_step=2)) as sink:
        sink.write(3, {"a": 4.0})
        assert [row["a"] for row in read_jsonl(path)] == [1, 2, 4.0]  # a reader sees each row at once
    with contextlib.closing(JsonlSink(path, resumed_step=0)):
        assert read_jsonl(path) == []


def test_the_console_shows_plain_lines_where_it_is_no_terminal(shards, tmp_path):
    out = io.StringIO()
    sink = ConsoleSink(100, 0, Console(file=out, width=40))
    rate = {"learning_rate": 1e-3, "samples_per_s": 12.3}
    sink.write(20, {"loss": 3.0, "contrastive": 1.25, "captioning": 0.5, **rate})
    sink.write(40, {"loss": 2.5, "answering": 1.0, **rate})  # another task has other parts
    sink.write(40, {"val/i2t_recall@1": 0.25})
    sink.close()
    first, second, third = out.getvalue().splitlines()
    assert first.startswith(
        "step 20/100  loss 3.000  contrastive 1.250  captioning 0.500  lr 1.0e-03  12 samples/s  ETA"
    )
    assert second.startswith("step 40/100  loss 2.500  lr")
    assert third == "step 40  val/i2t_recall@1 0.25"


def test_the_console_shows_one_live_line_on_a_terminal():
    out = io.StringIO()
    sink = ConsoleSink(100, 10, Console(file=out, width=150, force_terminal=True))
    sink.write(20, {"loss": 3.0, "contrastive": 1.25, "captioning": 0.5, "learning_rate": 1e-3, "samples_per_s": 12.3})
    sink.close()
    assert "20/100" in out.getvalue() and "contrastive 1.250" in out.getvalue()
