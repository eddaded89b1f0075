# The API and the one-shot migration. No torch: of models, the API reads only config files and lists of files.
# With the command line, for `replaceme keys`.
#   --build-arg BASE=...    another image of Debian 13 or later with Python; binutils of 12 breaks numpy
#   --build-arg BUILD_PACKAGES='binutils python3-pip python3-venv'    where it has no pip and venv
ARG BASE=python:3.11-slim-trixie

FROM ${BASE} AS build
ARG BUILD_PACKAGES=binutils
# hadolint ignore=DL3008,SC2086
RUN apt-get update && apt-get install --yes --no-install-recommends ${BUILD_PACKAGES} && rm -rf /var/lib/apt/lists/*
WORKDIR /source
# in steps of their own, so that a change of the sources does not download what they need again
COPY docker/locks/build.txt docker/locks/api.txt ./
RUN --mount=type=cache,target=/root/.cache/pip \
    python -m venv /build \
    && /build/bin/python -m pip install --no-deps --require-hashes --requirement build.txt \
    && python -m venv --without-pip /opt/replaceme \
    && python -m pip --python /opt/replaceme/bin/python install --no-compile --no-deps --require-hashes --requirement api.txt
COPY docker/slim.sh ./
COPY pyproject.toml README.md LICENSE ./
COPY api ./api
COPY migrations ./migrations
COPY replaceme_core ./replaceme_core
COPY worker ./worker
# hf-xet is for files of models, of which the API reads none
RUN /build/bin/python -m pip wheel --no-deps --no-build-isolation --wheel-dir /wheels . \
    && python -m pip --python /opt/replaceme/bin/python install --no-compile --no-deps /wheels/replaceme-*.whl \
    && python -m pip --python /opt/replaceme/bin/python check \
    && python -m pip --python /opt/replaceme/bin/python uninstall --yes hf-xet \
    && sh slim.sh /opt/replaceme api.main api.cli.main migrations.__main__ \
    && /build/bin/cyclonedx-py environment --output-reproducible --output-file /opt/replaceme/sbom.cdx.json /opt/replaceme/bin/python

FROM ${BASE}
# the working directory is empty and not writable, because Python looks for modules in it first
RUN groupadd --gid 10001 replaceme \
    && useradd --uid 10001 --gid 10001 --no-create-home --home-dir /tmp --shell /usr/sbin/nologin replaceme \
    && install --directory --owner 10001 --group 10001 --mode 0700 /data \
    && install --directory --owner 0 --group 0 --mode 0555 /app
COPY --from=build /opt/replaceme /opt/replaceme
ENV PATH=/opt/replaceme/bin:$PATH \
    HOME=/tmp \
    PYTHONUNBUFFERED=1 \
    PYTHONDONTWRITEBYTECODE=1 \
    REPLACEME_DATA=/data \
    HF_HOME=/data/hub-cache/.huggingface
WORKDIR /app
USER 10001:10001
EXPOSE 8000
# http.client, because urllib would use a proxy that the environment names
HEALTHCHECK --interval=10s --timeout=8s --start-period=30s --retries=3 \
    CMD ["python", "-c", "import http.client, sys; c = http.client.HTTPConnection('127.0.0.1', 8000, timeout=6); c.request('GET', '/ready'); sys.exit(c.getresponse().status != 200)"]
CMD ["python", "-m", "api.http.server", "--host", "0.0.0.0", "--port", "8000"]
