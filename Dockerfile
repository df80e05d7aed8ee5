# coca serve in a container: slim, without root, and with nothing writable but /tmp.
#
#   docker build -t opencoca .
#   docker run --rm -p 127.0.0.1:8000:8000 -e COCA_TOKEN=... --read-only --tmpfs /tmp --cap-drop ALL opencoca
#
# See docs/serving.md. The versions are those of constraints.txt; torch is PyTorch's build for processors without a GPU.

FROM python:3.11-slim AS build
ENV PIP_DISABLE_PIP_VERSION_CHECK=1 PIP_NO_CACHE_DIR=1
WORKDIR /src
COPY pyproject.toml setup.py constraints.txt README.md LICENSE NOTICE ./
COPY native native
COPY src src
# for the decoding step in C; torch brings the OpenMP runtime that it needs
RUN apt-get update && apt-get install --yes --no-install-recommends gcc libc6-dev && rm -rf /var/lib/apt/lists/*
RUN python -m pip wheel --no-deps --wheel-dir /wheels . \
 && python -m venv /opt/opencoca \
 && /opt/opencoca/bin/pip install --constraint constraints.txt \
      --extra-index-url https://download.pytorch.org/whl/cpu "$(echo /wheels/opencoca-*.whl)[serve]"

FROM python:3.11-slim
RUN useradd --system --uid 10001 --home-dir /tmp --shell /usr/sbin/nologin opencoca
COPY --from=build /opt/opencoca /opt/opencoca
ENV PATH=/opt/opencoca/bin:$PATH PYTHONDONTWRITEBYTECODE=1 PYTHONUNBUFFERED=1 HOME=/tmp
USER 10001
WORKDIR /tmp
EXPOSE 8000
HEALTHCHECK --interval=30s --timeout=5s --start-period=60s --retries=3 \
  CMD ["python", "-c", "import urllib.request as u; u.urlopen('http://127.0.0.1:8000/livez', timeout=4)"]
# anything but loopback needs a token: without COCA_TOKEN this ends with a line that says so
ENTRYPOINT ["coca", "serve", "--host", "0.0.0.0", "--port", "8000"]
CMD []
