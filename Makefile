# The same words as in README.md and in CI. Everything else that can be run by hand is in tools/README.md.

SHELL := bash
.SHELLFLAGS := -euo pipefail -c
.DEFAULT_GOAL := help
.PHONY: help setup demo demo-down check test compat faults soak fuzz bench audit crds image sbom mutants

CARGO ?= nice cargo
TEST_DEMO := target/demo

step = @printf '\n== %s\n' '$(1)'

help: ## This list
	@sed -nE 's/^([a-z-]+):.* ## (.*)/make \1\t\2/p' $(MAKEFILE_LIST) | expand -t 18

setup: ## Install and build what the rest needs: once, about 15 minutes
	$(call step,setup: the tools of tests and demo)
	@tools/setup

demo: ## The broker with a real API server, Keycloak, Dovecot and Postfix on this machine; as root
	@tools/demo up .demo

demo-down: ## Stop the demo and remove all of it
	@tools/demo down .demo

check: ## Format, lints, dependencies, generated files, unit tests: seconds when warm
	$(call step,check: format)
	@$(CARGO) fmt --all --check
	@tools/shellcheck
	$(call step,check: licences and sources of dependencies)
	@tools/run cargo-deny --log-level error check bans licenses sources
	$(call step,check: lints)
	@$(CARGO) clippy --quiet --locked --workspace --all-targets -- -D warnings
	@$(CARGO) clippy --quiet --locked --test soak -- -D warnings
	$(call step,check: unit tests; the CRDs and the documentation are those of the code)
	@$(CARGO) test --quiet --locked --workspace --lib --bins --test crds --test docs

test: setup check ## All tests, and the demo once to its end: what CI runs
	$(call step,test: all tests)
	@$(CARGO) test --locked --workspace --no-fail-fast
	$(call step,test: the demo)
	@tools/demo once $(TEST_DEMO)

compat: ## The broker on the oldest and the newest supported Kubernetes: their API servers are built once, some minutes each
	@tools/setup control-plane chart compat
	@CARGO="$(CARGO)" tools/compat

faults: ## Breaks everything that can break, and says what was lost: docs/reliability.md; FAULTS="K3 F09" for some
	$(call step,faults: the tools of tests)
	@tools/setup control-plane keycloak
	@tools/faults $(FAULTS)

soak: ## Kills it 200 times at random moments, renews 10,000 tokens: about 25 minutes; KILLS=20 RENEWALS=1000 for less
	$(call step,soak: the tools of tests)
	@tools/setup control-plane keycloak
	$(call step,soak: build)
	@$(CARGO) test --quiet --locked --test soak --no-run
	$(call step,soak: kills and renewals)
	@$(CARGO) test --quiet --locked --test soak

fuzz: ## Feeds what reads other people's bytes with nonsense: SECONDS=30 for each, TARGETS="discovery url_guard" for some
	$(call step,fuzz: the tool)
	@tools/setup fuzz
	@tools/fuzz $(or $(SECONDS),30) $(TARGETS)

# Built as the image's binary is.
bench: export RUSTFLAGS = $(shell cat tools/release.rustflags)
bench: AS_SHIPPED = --locked --target $(shell rustc -vV | sed -n 's/^host: //p')
bench: ## How fast it is, on this machine: about an hour; QUICK=1 to see that it works, ONLY=create for a part
	@tools/setup control-plane
	$(call step,bench: build)
	@$(CARGO) bench $(AS_SHIPPED) --no-run
	$(call step,bench: the parts that compute)
	@cargo bench --quiet $(AS_SHIPPED) --bench micro
	$(call step,bench: the broker beside a raw writer)
	@cargo bench --quiet $(AS_SHIPPED) --bench broker

audit: ## Known vulnerabilities among the dependencies: needs the advisory database on GitHub
	@tools/setup deny
	@tools/run cargo-deny check advisories

crds: ## Write crds/ and the chart's copy of it from the types
	@tools/crds

image: ## The container image, without a Docker engine; TWICE=1 to see that it can be reproduced
	@tools/setup image
	@tools/build-image $(if $(TWICE),--twice)

sbom: ## What the binary is made of, in CycloneDX: target/mail-token-broker.cdx.json; TARGET=aarch64-unknown-linux-gnu for another
	@tools/setup sbom
	@tools/sbom $(TARGET)

mutants: ## Does a unit test notice each small change of what decides? Hours; MUTANTS="--shard 0/8" for a part
	@tools/setup mutants
	@tools/mutants $(MUTANTS)
