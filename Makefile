# The targets that README.md and CI use. tools/README.md lists all other commands.

SHELL := bash
.SHELLFLAGS := -euo pipefail -c
.DEFAULT_GOAL := help
.PHONY: help setup demo demo-down check chart test compat e2e soak-mail faults soak fuzz bench audit crds image sbom mutants

CARGO ?= nice cargo
TEST_DEMO := target/demo

step = @printf '\n== %s\n' '$(1)'

help: ## Print this list
	@sed -nE 's/^([a-z0-9-]+):.* ## (.*)/make \1\t\2/p' $(MAKEFILE_LIST) | expand -t 18

setup: ## Install and build the tools that the other targets need: once, about 15 minutes
	$(call step,setup: the tools of tests and demo)
	@tools/setup

demo: ## Run the broker with a real API server, Keycloak, Dovecot and Postfix on this machine; as root
	@tools/demo up .demo

demo-down: ## Stop the demo and remove its files
	@tools/demo down .demo

check: ## Check format, lints, dependencies and generated files, and run the unit tests: seconds when warm
	$(call step,check: format)
	@$(CARGO) fmt --all --check
	@tools/shellcheck
	$(call step,check: licences and sources of dependencies)
	@tools/run cargo-deny --log-level error check bans licenses sources
	$(call step,check: lints)
	@$(CARGO) clippy --quiet --locked --workspace --all-targets -- -D warnings
	@$(CARGO) clippy --quiet --locked --test soak -- -D warnings
	$(call step,check: unit tests; generated CRDs; documentation)
	@$(CARGO) test --quiet --locked --workspace --lib --bins
	@$(CARGO) test --quiet --locked --test checks -- --skip chart:: --skip chart_access:: --skip gitops:: --skip flux::

chart: ## Lint the charts and run their unit tests: seconds, without Rust and without a cluster
	@tools/setup chart
	@tools/chart

test: setup check ## Run all tests, and the demo once, as CI does
	$(call step,test: all tests)
	@$(CARGO) test --locked --workspace --no-fail-fast
	$(call step,test: the demo)
	@tools/demo once $(TEST_DEMO)

compat: ## Test the broker on the oldest and the newest supported Kubernetes; builds their API servers once, some minutes each
	@tools/setup control-plane chart compat
	@CARGO="$(CARGO)" tools/compat

e2e: ## Install the packaged charts on a cluster that runs pods, with programs that log in: as root, IMAGES=keep for the images of the last run
	@nice tests/pods/e2e

soak-mail: ## Log in from pods once a second while broker, provider, API server and kubelets fail: as root; DURATION=30m
	@nice tests/pods/soak

faults: ## Run the fault tests of docs/reliability.md and print what was lost; FAULTS="K3 F09" for some
	$(call step,faults: the tools of tests)
	@tools/setup control-plane keycloak
	@tools/faults $(FAULTS)

soak: ## Kill the broker 200 times at random moments, renew 10,000 tokens: about 25 minutes; KILLS=20 RENEWALS=1000 for less
	$(call step,soak: the tools of tests)
	@tools/setup control-plane keycloak
	$(call step,soak: build)
	@$(CARGO) test --quiet --locked --test soak --no-run
	$(call step,soak: kills and renewals)
	@$(CARGO) test --quiet --locked --test soak

fuzz: ## Fuzz the parsers of untrusted input: SECONDS=30 for each, TARGETS="discovery url_guard" for some
	$(call step,fuzz: the tool)
	@tools/setup fuzz
	@tools/fuzz $(or $(SECONDS),30) $(TARGETS)

# Compiled with the flags of the image's binary.
bench: export RUSTFLAGS = $(shell cat tools/release.rustflags)
bench: AS_SHIPPED = --locked --target $(shell rustc -vV | sed -n 's/^host: //p')
bench: ## Measure the broker and the relay on this machine: 90 minutes; QUICK=1 for a short trial, ONLY=create or ONLY=relay for a part
ifneq ($(filter-out relay,$(or $(ONLY),all)),)
	@tools/setup control-plane
	$(call step,bench: build)
	@$(CARGO) bench $(AS_SHIPPED) --no-run
	$(call step,bench: pure functions)
	@cargo bench --quiet $(AS_SHIPPED) --bench micro
	$(call step,bench: the broker and a raw writer)
	@ONLY="$(filter-out relay,$(ONLY))" cargo bench --quiet $(AS_SHIPPED) --bench broker
endif
ifneq ($(filter relay,$(or $(ONLY),relay)),)
	@tools/setup relay-bench
	$(call step,bench: the relay beside other programs)
	@CARGO="$(CARGO)" tools/bench-relay
endif

audit: ## Check the dependencies for known vulnerabilities: needs the advisory database on GitHub
	@tools/setup deny
	@tools/run cargo-deny check advisories

crds: ## Generate crds/ and the chart's copy from the API types
	@tools/crds

image: ## Build the two container images without a Docker engine; TWICE=1 to check that the build is reproducible
	@tools/setup image
	@tools/build-image $(if $(TWICE),--twice)

sbom: ## Write the SBOM of each binary in CycloneDX: target/mail-token-*.cdx.json; TARGET=aarch64-unknown-linux-gnu for another
	@tools/setup sbom
	@tools/sbom $(TARGET)

mutants: ## Check that a unit test detects each mutation of the pure code: hours; MUTANTS="--shard 0/8" for a part
	@tools/setup mutants
	@tools/mutants $(MUTANTS)
