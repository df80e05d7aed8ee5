"""What the tests of shards share: a folder of them, whose pictures are bytes that anyone can tell."""

from opencoca.data.shards import ShardWriter


def picture(i):
    return bytes([i % 256]) * (400 + 37 * i)


def write(folder, count=10, samples_per_shard=4, split="train"):
    with ShardWriter(folder, samples_per_shard, source={"name": "test"}) as writer:
        for i in range(count):
            writer.add(split, f"{i:04d}", picture(i), f"caption {i} \u00e9", {"i": i})
    return folder
