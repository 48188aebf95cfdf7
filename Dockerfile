# The image holds one static binary and the CA certificates: no shell, no package manager, no root.
# A release passes the digest of this tag, which release.yml resolves once and records in the image and in the release. The
# builder's CA certificates become those of the image, so the builder determines which authorities the broker trusts.
ARG BUILDER_IMAGE=docker.io/library/rust:1.95-bookworm
ARG RUNTIME_IMAGE=scratch

FROM ${BUILDER_IMAGE} AS builder
# The Rust images set CARGO_HOME themselves; another builder image gets this one.
ARG CARGO_HOME=/usr/local/cargo
# "true" builds offline, from a filled registry folder.
ARG CARGO_NET_OFFLINE=false
# Cargo's target folder, kept for the next build. Another folder builds everything again.
ARG TARGET_DIR=/src/target
# Seconds since 1970 for the files of the image. With the commit's time, two builds of the commit are identical.
ARG SOURCE_DATE_EPOCH=0
WORKDIR /src
COPY . .
# - --target limits crt-static to the binary: build scripts and procedural macros do not support it.
# - The build runs the binary once: relocations are packed, and a C library before glibc 2.36 cannot unpack them.
# - Paths are mapped to fixed paths in Rust and C code: the binary shows nothing of the builder, and the build is reproducible.
# - Sources are touched, because the cached target folder can be newer than a checkout of an older commit.
RUN --mount=type=cache,id=mail-token-broker-registry,target=/usr/local/cargo/registry,sharing=locked \
    --mount=type=cache,id=mail-token-broker-target,target=/src/target,sharing=locked \
    set -eu; \
    target=$(rustc -vV | sed -n 's/^host: //p'); \
    export CARGO_HOME CARGO_NET_OFFLINE SOURCE_DATE_EPOCH; \
    export CFLAGS="-ffile-prefix-map=$CARGO_HOME=/cargo -ffile-prefix-map=/src=/build -ffile-prefix-map=$TARGET_DIR=/build/target"; \
    flags=$(cat tools/release.rustflags); \
    export RUSTFLAGS="$flags --remap-path-prefix=$CARGO_HOME=/cargo --remap-path-prefix=/src=/build --remap-path-prefix=$TARGET_DIR=/build/target"; \
    find src crates -type f -exec touch {} +; \
    cargo build --locked --release --target "$target" --target-dir "$TARGET_DIR" --bin mail-token-broker; \
    install -D -m 0755 "$TARGET_DIR/$target/release/mail-token-broker" /image/mail-token-broker; \
    /image/mail-token-broker --version; \
    install -D -m 0644 /etc/ssl/certs/ca-certificates.crt /image/etc/ssl/certs/ca-certificates.crt; \
    find /image -exec touch -d "@$SOURCE_DATE_EPOCH" {} +

FROM ${RUNTIME_IMAGE}
ARG VERSION=0.1.0
ARG REVISION=unknown
ARG BUILDER_IMAGE
LABEL org.opencontainers.image.title="mail-token-broker" \
      org.opencontainers.image.description="Obtains OAuth2 access tokens for mail and keeps them in Kubernetes Secrets" \
      org.opencontainers.image.licenses="Apache-2.0" \
      org.opencontainers.image.version="${VERSION}" \
      org.opencontainers.image.revision="${REVISION}" \
      org.opencontainers.image.source="https://github.com/mail-token-broker/mail-token-broker" \
      org.opencontainers.image.url="https://github.com/mail-token-broker/mail-token-broker" \
      org.opencontainers.image.documentation="https://github.com/mail-token-broker/mail-token-broker#readme" \
      dev.mailtoken.builder="${BUILDER_IMAGE}"
COPY --from=builder /image/ /
USER 65532:65532
EXPOSE 8080
ENTRYPOINT ["/mail-token-broker"]
CMD ["run"]
