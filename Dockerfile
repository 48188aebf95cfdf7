# Two images, each with one static binary, the CA certificates and the licence texts: no shell, no package manager, no root. The last stage is the
# broker's. `--target mail-token-relay` builds the relay's.
# A release passes the digest of this tag, which release.yml resolves once and records in the image and in the release. The
# builder's CA certificates become those of the image, so the builder determines which authorities the broker trusts.
ARG BUILDER_IMAGE=docker.io/library/rust:1.95-bookworm
ARG RUNTIME_IMAGE=scratch

FROM ${BUILDER_IMAGE} AS source
WORKDIR /src
COPY . .

FROM source AS relay-builder
# The Rust images set CARGO_HOME themselves; another builder image gets this one.
ARG CARGO_HOME=/usr/local/cargo
# "true" builds offline, from a filled registry folder.
ARG CARGO_NET_OFFLINE=false
# Cargo's target folder, kept for the next build. Another folder builds everything again.
ARG TARGET_DIR=/src/target
# Seconds since 1970 for the files of the image. With the commit's time, two builds of the commit are identical.
ARG SOURCE_DATE_EPOCH=0
RUN --mount=type=cache,id=mail-token-broker-registry,target=/usr/local/cargo/registry,sharing=locked \
    --mount=type=cache,id=mail-token-broker-target,target=/src/target,sharing=locked \
    tools/build-binary mailtoken-relay mail-token-relay

FROM ${RUNTIME_IMAGE} AS mail-token-relay
ARG VERSION=0.1.0
ARG REVISION=unknown
ARG BUILDER_IMAGE
LABEL org.opencontainers.image.title="mail-token-relay" \
      org.opencontainers.image.description="Logs in at mail servers with OAuth2 tokens for programs that know only a password" \
      org.opencontainers.image.licenses="Apache-2.0" \
      org.opencontainers.image.version="${VERSION}" \
      org.opencontainers.image.revision="${REVISION}" \
      org.opencontainers.image.source="https://github.com/mail-token-broker/mail-token-broker" \
      org.opencontainers.image.url="https://github.com/mail-token-broker/mail-token-broker" \
      org.opencontainers.image.documentation="https://github.com/mail-token-broker/mail-token-broker#readme" \
      dev.mailtoken.builder="${BUILDER_IMAGE}"
COPY --from=relay-builder /image/ /
USER 65532:65532
EXPOSE 1587 1143 1110
ENTRYPOINT ["/mail-token-relay"]

FROM source AS builder
ARG CARGO_HOME=/usr/local/cargo
ARG CARGO_NET_OFFLINE=false
ARG TARGET_DIR=/src/target
ARG SOURCE_DATE_EPOCH=0
RUN --mount=type=cache,id=mail-token-broker-registry,target=/usr/local/cargo/registry,sharing=locked \
    --mount=type=cache,id=mail-token-broker-target,target=/src/target,sharing=locked \
    tools/build-binary mail-token-broker mail-token-broker

FROM ${RUNTIME_IMAGE} AS mail-token-broker
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
