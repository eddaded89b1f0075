# A worker: one job at a time. torch for CPUs unless TORCH_INDEX says otherwise:
#   --build-arg TORCH_INDEX=https://pypi.org/simple    torch for NVIDIA GPUs (on x86-64 Linux)
#   --build-arg TORCH=torch==2.13.0                    a release of it
#   --build-arg LOCK=worker-quantized                bitsandbytes too, for compute.quantization
#   --build-arg BASE=...    another image of Debian 13 or later with Python; binutils of 12 breaks numpy
#   --build-arg BUILD_PACKAGES='binutils python3-pip python3-venv'    where it has no pip and venv
ARG BASE=python:3.11-slim-trixie

FROM ${BASE} AS build
ARG BUILD_PACKAGES=binutils
# hadolint ignore=DL3008,SC2086
RUN apt-get update && apt-get install --yes --no-install-recommends ${BUILD_PACKAGES} && rm -rf /var/lib/apt/lists/*
ARG TORCH_INDEX=https://download.pytorch.org/whl/cpu
ARG TORCH=torch>=2.10
# in a step of its own, so that a change of the sources does not download torch again
RUN --mount=type=cache,target=/root/.cache/pip \
    python -m venv --without-pip /opt/replaceme \
    && python -m pip --python /opt/replaceme/bin/python install --no-compile --index-url "${TORCH_INDEX}" "${TORCH}"
WORKDIR /source
# in steps of their own, so that a change of the sources does not download what they need again
COPY docker/locks/*.txt ./
ARG LOCK=worker
RUN --mount=type=cache,target=/root/.cache/pip \
    python -m venv /build \
    && /build/bin/python -m pip install --no-deps --require-hashes --requirement build.txt \
    && python -m pip --python /opt/replaceme/bin/python install --no-compile --no-deps --require-hashes --requirement "${LOCK}.txt"
COPY docker/slim.sh ./
COPY pyproject.toml README.md LICENSE ./
COPY api ./api
COPY migrations ./migrations
COPY replaceme_core ./replaceme_core
COPY worker ./worker
RUN /build/bin/python -m pip wheel --no-deps --no-build-isolation --wheel-dir /wheels . \
    && python -m pip --python /opt/replaceme/bin/python install --no-compile --no-deps /wheels/replaceme-*.whl \
    && python -m pip --python /opt/replaceme/bin/python check \
    && sh slim.sh /opt/replaceme worker.app worker.once worker.runner replaceme_core.engine.pipeline \
        matplotlib.backends.backend_agg matplotlib.backends.backend_svg lm_eval.evaluator lm_eval.models.huggingface \
    && /build/bin/cyclonedx-py environment --output-reproducible --output-file /opt/replaceme/sbom.cdx.json /opt/replaceme/bin/python

FROM ${BASE}
# volumes are mounted on the last three folders of /data and take over their owner; the working directory is empty and
# not writable, because celery looks for modules in it first
RUN groupadd --gid 10001 replaceme \
    && useradd --uid 10001 --gid 10001 --no-create-home --home-dir /tmp --shell /usr/sbin/nologin replaceme \
    && install --directory --owner 10001 --group 10001 --mode 0700 \
        /data /data/cache /data/hub-cache /data/workspace /data/cache/statistics \
    && install --directory --owner 0 --group 0 --mode 0555 /app
COPY --from=build /opt/replaceme /opt/replaceme
ENV PATH=/opt/replaceme/bin:$PATH \
    HOME=/tmp \
    PYTHONUNBUFFERED=1 \
    PYTHONDONTWRITEBYTECODE=1 \
    NVIDIA_DRIVER_CAPABILITIES=compute,utility \
    REPLACEME_DATA=/data \
    HF_HOME=/data/hub-cache/.huggingface
WORKDIR /app
USER 10001:10001
# pings this worker through the broker; it answers during a job too
HEALTHCHECK --interval=60s --timeout=30s --start-period=60s --retries=3 \
    CMD ["sh", "-c", "exec python -m celery --quiet -A worker.app inspect ping --timeout 10 --destination celery@$(python -c 'import socket; print(socket.gethostname())')"]
CMD ["python", "-m", "celery", "--quiet", "-A", "worker.app", "worker", "--pool", "prefork", "--concurrency", "1", "--loglevel", "INFO"]
