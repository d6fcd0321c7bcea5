# An edge: one static program, whom to trust, and a program to ask after its health with. The context is the folder that `ci/packages` makes:
#   docker build --file deploy/container/skep-edge.Dockerfile --tag skep-edge target/packages
# Its door asks nobody who they are, so it is on the loopback of the network that it is given: docs/install.md has the whole commands.

ARG BASE=docker.io/library/debian:bookworm-slim

FROM ${BASE} AS checked
ARG TARGETARCH=amd64
WORKDIR /release
RUN apt-get update && apt-get install --yes --no-install-recommends busybox-static ca-certificates && rm -rf /var/lib/apt/lists/*
COPY SHA256SUMS skep-edge-*-linux ./
RUN case "$TARGETARCH" in amd64) machine=x86_64 ;; arm64) machine=aarch64 ;; *) exit 1 ;; esac \
    && grep " skep-edge-$machine-linux\$" SHA256SUMS > own && sha256sum --check --strict own \
    && install -D -m 0755 "skep-edge-$machine-linux" /image/usr/bin/skep-edge \
    && install -D -m 0755 /bin/busybox /image/usr/bin/busybox \
    && install -D -m 0644 /etc/ssl/certs/ca-certificates.crt /image/etc/ssl/certs/ca-certificates.crt \
    && install -d -m 0700 -o 65532 -g 65532 /image/var/lib/skep-edge

FROM scratch
COPY --from=checked /image/ /
USER 65532:65532
VOLUME ["/var/lib/skep-edge"]
WORKDIR /var/lib/skep-edge
STOPSIGNAL SIGTERM
HEALTHCHECK --interval=30s --timeout=5s --start-period=10s --retries=3 \
    CMD ["/usr/bin/busybox", "wget", "-q", "-O", "-", "http://127.0.0.1:7700/healthz"]
ENTRYPOINT ["/usr/bin/skep-edge"]
CMD ["run"]
