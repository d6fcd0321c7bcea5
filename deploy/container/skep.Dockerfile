# A node. The context is the folder that `ci/packages` makes (target/packages), so that the program is the one of SHA256SUMS:
#   docker build --file deploy/container/skep.Dockerfile --tag skep target/packages
# It listens on loopback until it is given TLS and a token: docs/install.md has the whole command.

# The C library must be no older than that of the machine where `ci/dist` ran.
ARG BASE=docker.io/library/debian:bookworm-slim

FROM ${BASE} AS checked
ARG TARGETARCH=amd64
WORKDIR /release
COPY SHA256SUMS skep-*-linux ./
RUN case "$TARGETARCH" in amd64) machine=x86_64 ;; arm64) machine=aarch64 ;; *) exit 1 ;; esac \
    && grep " skep-$machine-linux\$" SHA256SUMS > own && sha256sum --check --strict own \
    && install -m 0755 "skep-$machine-linux" /skep

FROM ${BASE}
# Whose certificates the system trusts: for an object store, a Redis or an OpenID provider over TLS.
RUN apt-get update \
    && apt-get install --yes --no-install-recommends ca-certificates \
    && rm -rf /var/lib/apt/lists/* \
    && groupadd --gid 65532 skep \
    && useradd --uid 65532 --gid 65532 --home-dir /var/lib/skep --no-create-home --shell /usr/sbin/nologin skep \
    && install -d -m 0700 -o 65532 -g 65532 /var/lib/skep
COPY --from=checked /skep /usr/bin/skep
# By number: an orchestrator that forbids root does not read /etc/passwd.
USER 65532:65532
ENV SKEP_DATA=/var/lib/skep
VOLUME ["/var/lib/skep"]
WORKDIR /var/lib/skep
EXPOSE 4020
STOPSIGNAL SIGTERM
# The admin port, which is on loopback and speaks plain HTTP whatever the other one does. There is no curl here, and bash is.
HEALTHCHECK --interval=10s --timeout=5s --start-period=30s --retries=3 \
    CMD ["/bin/bash", "-c", "exec 3<>/dev/tcp/127.0.0.1/4021 && printf 'GET /healthz HTTP/1.0\\r\\n\\r\\n' >&3 && read -r -t 4 line <&3 && [[ $line == *' 200 '* ]]"]
ENTRYPOINT ["/usr/bin/skep"]
CMD ["serve"]
