// The least that KVM can do, for comparison: from exec to the first byte that a guest prints, by the KVM calls that mote
// makes in their order, on one thread and with nothing around them. The guest is one `out` and one `hlt`.

#include <fcntl.h>
#include <linux/kvm.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/ioctl.h>
#include <sys/mman.h>
#include <unistd.h>

enum { RAM = 256 << 20, LARGE_PAGE = 2 << 20, CODE = 16 << 20, TABLES = 0x2000, ENTRIES = 100 };

static long must(long result, const char *what) {
    if (result < 0) {
        perror(what);
        exit(1);
    }
    return result;
}
#define MUST(call) must((long)(call), #call)

static void *map(size_t size, int flags, int fd) {
    void *at = mmap(NULL, size, PROT_READ | PROT_WRITE, flags, fd, 0);
    if (at == MAP_FAILED)
        must(-1, "mmap");
    return at;
}

static struct kvm_segment segment(int selector, int type, int is_64_bit) {
    return (struct kvm_segment){.limit = 0xffffffff, .selector = selector, .type = type, .present = 1,
                                .s = 1, .g = 1, .l = is_64_bit, .db = !is_64_bit};
}

int main(void) {
    int kvm = MUST(open("/dev/kvm", O_RDWR | O_CLOEXEC));
    MUST(ioctl(kvm, KVM_GET_API_VERSION, 0));
    struct kvm_cpuid2 *cpuid = calloc(1, sizeof(*cpuid) + ENTRIES * sizeof(cpuid->entries[0]));
    cpuid->nent = ENTRIES;
    MUST(ioctl(kvm, KVM_GET_SUPPORTED_CPUID, cpuid));

    int vm = MUST(ioctl(kvm, KVM_CREATE_VM, 0));
    uint64_t identity_map = 0xfeffc000;
    MUST(ioctl(vm, KVM_SET_IDENTITY_MAP_ADDR, &identity_map));
    MUST(ioctl(vm, KVM_SET_TSS_ADDR, 0xfeffd000));

    // RAM in large pages, but for the first, and the page of configuration space.
    char *room = map(RAM + LARGE_PAGE, MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1);
    char *ram = room + (-(uintptr_t)room & (LARGE_PAGE - 1));
    madvise(ram, RAM, MADV_HUGEPAGE);
    madvise(ram, LARGE_PAGE, MADV_NOHUGEPAGE);
    struct kvm_userspace_memory_region slot = {.memory_size = RAM, .userspace_addr = (uintptr_t)ram};
    MUST(ioctl(vm, KVM_SET_USER_MEMORY_REGION, &slot));
    slot = (struct kvm_userspace_memory_region){
        .slot = 1, .flags = KVM_MEM_READONLY, .guest_phys_addr = 0xf0008000, .memory_size = 0x10000,
        .userspace_addr = (uintptr_t)map(0x10000, MAP_PRIVATE | MAP_ANONYMOUS, -1)};
    MUST(ioctl(vm, KVM_SET_USER_MEMORY_REGION, &slot));

    MUST(ioctl(vm, KVM_CREATE_IRQCHIP, 0));
    struct kvm_irq_routing *routes = calloc(1, sizeof(*routes) + 24 * sizeof(routes->entries[0]));
    for (routes->nr = 0; routes->nr < 24; routes->nr++)
        routes->entries[routes->nr] = (struct kvm_irq_routing_entry){
            .gsi = routes->nr, .type = KVM_IRQ_ROUTING_IRQCHIP,
            .u.irqchip = {.irqchip = KVM_IRQCHIP_IOAPIC, .pin = routes->nr}};
    MUST(ioctl(vm, KVM_SET_GSI_ROUTING, routes));
    int cpu = MUST(ioctl(vm, KVM_CREATE_VCPU, 0));
    size_t size = MUST(ioctl(kvm, KVM_GET_VCPU_MMAP_SIZE, 0));
    struct kvm_run *run = map(size, MAP_SHARED, cpu);

    // The guest: page tables for the first GiB, and code that prints to the serial port.
    uint64_t *tables = (uint64_t *)(ram + TABLES);
    tables[0] = (TABLES + 0x1000) | 3;
    tables[512] = (TABLES + 0x2000) | 3;
    for (int page = 0; page < 512; page++)
        tables[1024 + page] = (uint64_t)page * LARGE_PAGE | 0x83;
    memcpy(ram + CODE, "\x66\xba\xf8\x03\xb0!\xee\xf4", 8);

    MUST(ioctl(cpu, KVM_GET_TSC_KHZ, 0));
    MUST(ioctl(cpu, KVM_SET_CPUID2, cpuid));
    struct { struct kvm_msrs head; struct kvm_msr_entry entries[2]; } msrs = {
        .head.nmsrs = 2, .entries = {{.index = 0x1a0, .data = 0x1801}, {.index = 0x2ff, .data = 0x806}}};
    MUST(ioctl(cpu, KVM_SET_MSRS, &msrs));
    struct kvm_sregs system;
    MUST(ioctl(cpu, KVM_GET_SREGS, &system));
    system.cs = segment(0x10, 11, 1);
    system.ds = system.es = system.fs = system.gs = system.ss = segment(0x18, 3, 0);
    system.cr3 = TABLES;
    system.cr4 |= 0x20;
    system.cr0 |= 0x80000001;
    system.efer = 0x500;
    MUST(ioctl(cpu, KVM_SET_SREGS, &system));
    struct kvm_regs registers = {.rip = CODE, .rflags = 2};
    MUST(ioctl(cpu, KVM_SET_REGS, &registers));
    for (int index = 0; index < 4; index++) {
        struct kvm_coalesced_mmio_zone zone = {.addr = 0xf0008014 + index * 0x1000, .size = 4};
        MUST(ioctl(vm, KVM_REGISTER_COALESCED_MMIO, &zone));
    }

    MUST(ioctl(cpu, KVM_RUN, 0));
    if (run->exit_reason != KVM_EXIT_IO)
        return 2;
    return write(1, (char *)run + run->io.data_offset, 1) != 1;
}
