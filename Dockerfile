# One image for all processes: `docker run IMAGE run firehose`, as uid 10001, with a read-only root and a writable /tmp.
#
#   docker build -t sluice:0.1.0 .
#
# BASE may be any image with Python 3.11 or 3.12 as python3; pin it with @sha256:… for reproducible builds. A base with Debian's
# Python needs python3-dev and python3-venv in BUILD_PACKAGES.
ARG BASE=python:3.11.14-slim-bookworm

FROM ${BASE} AS build
ARG BUILD_PACKAGES="gcc libc6-dev"
ARG UV_VERSION=0.13.9
ENV UV_PROJECT_ENVIRONMENT=/opt/sluice \
    UV_PYTHON=python3 \
    UV_PYTHON_DOWNLOADS=never \
    UV_COMPILE_BYTECODE=1 \
    UV_LINK_MODE=copy \
    UV_NO_CACHE=1
# hadolint ignore=DL3008 # only a compiler for the build; its input is pinned in uv.lock
RUN apt-get update \
 && apt-get install -y --no-install-recommends ${BUILD_PACKAGES} \
 && rm -rf /var/lib/apt/lists/*
RUN python3 -m venv /opt/uv && /opt/uv/bin/pip install --no-cache-dir --quiet "uv==${UV_VERSION}"
WORKDIR /src
# dependencies first: they change less often than the code
COPY pyproject.toml uv.lock README.md ./
RUN /opt/uv/bin/uv sync --frozen --no-dev --group build --no-install-project
COPY . .
# protocol/ is compiled where it is installed; the last sync removes the compiler, and the SBOM names what stays
RUN /opt/uv/bin/uv sync --frozen --no-dev --group build --no-editable \
 && /opt/sluice/bin/python -P -m tools.compile_protocol \
 && /opt/uv/bin/uv sync --frozen --no-dev --no-editable \
 && /opt/uv/bin/uv export --frozen --no-dev --format cyclonedx1.5 --quiet --output-file /opt/sluice/sbom.cdx.json

FROM ${BASE} AS run
ARG VERSION=0.1.0
ARG REVISION=unknown
LABEL org.opencontainers.image.title="sluice" \
      org.opencontainers.image.description="Mirrors the AT Protocol network into a Kafka-compatible log and PostgreSQL" \
      org.opencontainers.image.licenses="Apache-2.0" \
      org.opencontainers.image.version="${VERSION}" \
      org.opencontainers.image.revision="${REVISION}"
ENV PATH=/opt/sluice/bin:$PATH \
    PYTHONDONTWRITEBYTECODE=1 \
    PYTHONUNBUFFERED=1 \
    HOME=/tmp \
    SLUICE_HTTP_HOST=0.0.0.0 \
    SLUICE_HTTP_PORT=8080
COPY --from=build /opt/sluice /opt/sluice
WORKDIR /tmp
USER 10001:10001
EXPOSE 8080
# SIGTERM drains; the log may take two minutes to acknowledge: `docker stop --time 150`
STOPSIGNAL SIGTERM
HEALTHCHECK --interval=10s --timeout=5s --start-period=60s --retries=6 \
  CMD ["python3", "-c", "import os, urllib.request as web; web.urlopen(f'http://127.0.0.1:{os.environ[\"SLUICE_HTTP_PORT\"]}/healthz', timeout=4)"]
ENTRYPOINT ["sluice"]
CMD ["--help"]
