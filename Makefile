# vbr: build, test, try out, pack. `make help` lists what there is.
#
# Build products lie outside the clone, in one directory for all clones, and there is one profile:
# RocksDB is 343 C++ files, and nobody waits for them twice.

SHELL := /bin/bash
.DEFAULT_GOAL := build
.NOTPARALLEL:

export CARGO_TARGET_DIR ?= $(HOME)/.cache/vbr/target
export PATH := $(PATH):$(HOME)/.cargo/bin
BIN := $(CARGO_TARGET_DIR)/debug
RUST_MIN := 1.95
CARGO_DEB_VERSION := 3.8.0
# Suites that start appliances, mount loop devices and shape links: few at once, or they time each other out.
SYSTEM_TEST_THREADS ?= 2
# The newest package: for the shell to find, since it is not there yet when make reads this.
DEB := $$(ls -t $(CARGO_TARGET_DIR)/debian/vbr_*.deb | head -1)

# What it takes to build, and what tests, demo and benchmark use besides.
BUILD_PACKAGES := build-essential clang libclang-dev pkg-config git ca-certificates
# Not openssh-server, which restic and borg need as peers: installing it starts the system's own.
BENCH_PACKAGES := restic borgbackup openssh-client debootstrap python3
SYSTEM_PACKAGES := debootstrap
TEST_PACKAGES := qemu-utils qemu-system-common qemu-system-x86 lvm2 ntfs-3g xfsprogs btrfs-progs e2fsprogs fdisk util-linux iproute2 iputils-ping iperf3 procps rsync zstd systemd \
	nbdkit openssl libvirt-daemon-system libvirt-daemon-driver-qemu libvirt-clients

.PHONY: help
help: ## this list
	@grep -hE '^[a-z-]+:.*## ' $(MAKEFILE_LIST) | sed 's/:.*## /\t/' | expand -t 12

.PHONY: deps
deps: rust ## installs the packages that build and tests need (as root or through sudo)
	@packaging/deps $(BUILD_PACKAGES) $(TEST_PACKAGES)

.PHONY: rust
rust: ## checks the Rust toolchain
	@packaging/rust $(RUST_MIN)

.PHONY: build
build: deps ## builds vbrd, vbrctl and the tools of the tests
	cargo build --locked --workspace --bins

.PHONY: test
test: build ## everything: units, cores, formats, and the suites with two sites and a slow link
	cargo test --locked --workspace --lib --bins
	cargo test --locked --workspace --test '*' -- --test-threads=$(SYSTEM_TEST_THREADS)

.PHONY: demo
demo: build ## two sites, a link of 20 Mbit/s and 80 ms, three replications, a table
	$(BIN)/vbr-demo

.PHONY: bench
bench: build ## measures the figures that are promised, and the other tools beside; writes docs/benchmarks.md
	@packaging/deps $(BENCH_PACKAGES)
	$(BIN)/vbr-bench

.PHONY: lint
lint: deps ## format and lints; both must be silent
	cargo fmt --all -- --check
	cargo clippy --locked --workspace --all-targets -- -D warnings

.PHONY: service-check
service-check: ## the units and drop-ins against systemd's own checks (exposure at most 1.5; 2.0 with a drop-in, 2.3 for cards)
	packaging/service-check 1.5 systemd/vbrd.service systemd/drop-ins/*.conf
	packaging/service-check 1.0 systemd/vbr-vm@.service
	packaging/service-check 2.3 systemd/vbr-tap@.service

.PHONY: deb
deb: build ## a Debian package in <target>/debian
	@cargo deb --version 2>/dev/null | grep -qw '$(CARGO_DEB_VERSION)' \
		|| nice cargo install --locked cargo-deb --version $(CARGO_DEB_VERSION) --target-dir $(CARGO_TARGET_DIR)/cargo-deb
	rm -rf $(BIN)/deb-assets
	mkdir -p $(BIN)/deb-assets/man
	$(BIN)/vbrctl man $(BIN)/deb-assets/man
	cp packaging/vbrd.8 $(BIN)/deb-assets/man/
	gzip -9n $(BIN)/deb-assets/man/*.[18]
	$(BIN)/vbrctl completion bash > $(BIN)/deb-assets/vbrctl.bash
	$(BIN)/vbrctl completion zsh > $(BIN)/deb-assets/_vbrctl
	$(BIN)/vbrctl completion fish > $(BIN)/deb-assets/vbrctl.fish
	cargo deb --locked --package vbr-appliance --profile dev --no-build
	packaging/deb-check "$(DEB)"
	packaging/deb-install-check "$(DEB)"
	packaging/sbom $(BIN)/vbr-dependencies "$(DEB)"

.PHONY: test-system
test-system: deb ## the package in two machines with systemd and a slow line between them (as root, on Debian)
	@packaging/deps $(SYSTEM_PACKAGES)
	$(BIN)/vbr-system-test "$(DEB)"

.PHONY: audit
audit: build ## licences, sources and bans of all dependencies; advisories where their database is
	packaging/dependency-check $(BIN)/vbr-dependencies

.PHONY: docs
docs: build ## writes docs/commands.md from the definitions of the commands
	$(BIN)/vbrctl reference > docs/commands.md.new && mv docs/commands.md.new docs/commands.md

.PHONY: clean
clean: ## removes build products of this workspace (RocksDB included)
	cargo clean
