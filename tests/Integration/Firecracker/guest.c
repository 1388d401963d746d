/*
 * A guest for Firecracker that needs no kernel: it checks its own memory for ever, and gives pages back to the balloon as the host asks.
 *
 * Firecracker enters it as it enters Linux (64-bit boot protocol). It goes to ring 3 at once, since KVM's page-table based back end
 * emulates ring 0 and runs ring 3 natively, and uses no interrupt. Page 0 stays zero.
 *
 * All of the memory from FIRST on is checked. A page is zero or has the pattern of its number and generation, and each round checks every
 * page that the balloon does not have, and writes some anew. A page that comes back from the balloon must be zero. A second processor,
 * where there is one, reads pages at random meanwhile, also those that are just given back. The serial console
 * gets a line for each round, "round 7 balloon 6144 ok", or "wrong page 4711 word 0 has 0x.. not 0x.." once, and nothing after that.
 *
 * MEMORY is the size of the guest in bytes.
 */
typedef unsigned char u8;
typedef unsigned short u16;
typedef unsigned int u32;
typedef unsigned long u64;

#define PAGE 4096ul
#define FIRST (4ul << 20)
#define PAGES (MEMORY / PAGE)
#define RAM_WORDS (PAGE / sizeof(u64))
#define TRAMPOLINE 0x10000ul
#define BATCH 256u
#define QUEUE_SIZE 16u

__asm__(
    ".pushsection .text\n"
    ".globl start\n"
    "start:\n"
    "    lgdt gdtr(%rip)\n"
    "    lea pml4(%rip), %rax\n"
    "    mov %rax, %cr3\n"
    "    mov %rsi, %rdi\n"
    "    lea stack_end(%rip), %rsp\n"
    "    lea -8(%rsp), %rax\n"
    "    lea guest(%rip), %rdx\n"
    "enter: pushq $0x2b\n"
    "    pushq %rax\n"
    "    pushq $0x3002\n" /* ports from ring 3, no interrupts */
    "    pushq $0x33\n"
    "    pushq %rdx\n"
    "    iretq\n"
    "second:\n"
    "    lea second_stack_end(%rip), %rsp\n"
    "    lea -8(%rsp), %rax\n"
    "    lea second_guest(%rip), %rdx\n"
    "    jmp enter\n"
    /* Where the second processor begins, in real mode, is a copy of this. */
    ".code16\n"
    ".globl trampoline, trampoline_end\n"
    "trampoline:\n"
    "    mov %cs, %ax\n"
    "    mov %ax, %ds\n"
    "    lgdtl trampoline_gdtr - trampoline\n"
    "    mov $0x20, %eax\n"
    "    mov %eax, %cr4\n"
    "    mov $pml4, %eax\n"
    "    mov %eax, %cr3\n"
    "    mov $0xc0000080, %ecx\n"
    "    rdmsr\n"
    "    or $0x100, %eax\n"
    "    wrmsr\n"
    "    mov $0x80000001, %eax\n"
    "    mov %eax, %cr0\n"
    "    ljmpl $8, $second\n"
    "trampoline_gdtr: .word gdtr - gdt - 1\n"
    "    .long gdt\n"
    "trampoline_end:\n"
    ".code64\n"
    ".popsection\n"
    ".pushsection .data\n"
    ".balign 4096\n"
    "pml4: .quad pdpt + 7\n"
    "    .fill 511, 8, 0\n"
    /* The first GiB, and the one with the devices, mapped at their addresses. */
    "pdpt: .quad low + 7, 0, 0, high + 7\n"
    "    .fill 508, 8, 0\n"
    "low: .set at, 0\n"
    "    .rept 512\n"
    "    .quad at + 0x87\n"
    "    .set at, at + 0x200000\n"
    "    .endr\n"
    "high: .set at, 0xc0000000\n"
    "    .rept 512\n"
    "    .quad at + 0x87\n"
    "    .set at, at + 0x200000\n"
    "    .endr\n"
    /* The selectors of ring 3 are those of Linux. */
    "gdt: .quad 0, 0x00af9b000000ffff, 0x00cf93000000ffff, 0, 0, 0x00cff3000000ffff, 0x00affb000000ffff\n"
    "gdtr: .word gdtr - gdt - 1\n"
    "    .quad gdt\n"
    ".balign 16\n"
    "    .fill 16384, 1, 0\n"
    "stack_end:\n"
    "    .fill 4096, 1, 0\n"
    "second_stack_end:\n"
    ".popsection\n");

/* Serial console. */

static void print(const char *text)
{
    for (; *text; text++) __asm__ volatile("outb %0, %1" : : "a"(*text), "Nd"((u16)0x3f8));
}

static void print_number(u64 number, u32 base)
{
    char digits[21];
    char *at = digits + sizeof digits - 1;
    *at = 0;
    do *--at = "0123456789abcdef"[number % base];
    while (number /= base);
    print(at);
}

/* Virtio over MMIO: the queues of the balloon, one descriptor at a time. */

struct queue {
    struct { u64 address; u32 length; u16 flags, next; } descriptors[QUEUE_SIZE] __attribute__((aligned(16)));
    struct { u16 flags, index, ring[QUEUE_SIZE], event; } available;
    struct { u16 flags, index; struct { u32 id, length; } ring[QUEUE_SIZE]; u16 event; } used;
};

static struct queue queues[2];
static u32 numbers[BATCH];
static u64 device;

static volatile u32 *reg(u64 offset)
{
    return (volatile u32 *)(device + offset);
}

static void set_address(u64 offset, const volatile void *address)
{
    *reg(offset) = (u32)(u64)address;
    *reg(offset + 4) = (u32)((u64)address >> 32);
}

/* The first device on the command line: "... virtio_mmio.device=4K@0xc0001000:5 ...". */
static u64 find_device(const u8 *boot_parameters)
{
    static const char name[] = "virtio_mmio.device=4K@0x";
    u64 address = 0;
    for (const char *at = (const char *)(u64)*(const u32 *)(boot_parameters + 0x228); *at; at++) {
        u64 same = 0;
        while (name[same] && at[same] == name[same]) same++;
        if (name[same]) continue;
        for (at += same; *at != ':'; at++) address = address * 16 + (u64)(*at <= '9' ? *at - '0' : *at - 'a' + 10);
        return address;
    }

    return 0;
}

static void start_balloon(void)
{
    *reg(0x70) = 0;
    *reg(0x70) = 1;
    *reg(0x70) = 3;
    *reg(0x24) = 0;
    *reg(0x20) = 0;
    *reg(0x24) = 1;
    *reg(0x20) = 1; /* VIRTIO_F_VERSION_1 */
    *reg(0x70) = 11;
    for (u32 i = 0; i < 2; i++) {
        *reg(0x30) = i;
        *reg(0x38) = QUEUE_SIZE;
        set_address(0x80, queues[i].descriptors);
        set_address(0x90, &queues[i].available);
        set_address(0xa0, &queues[i].used);
        *reg(0x44) = 1;
    }

    *reg(0x70) = 15;
}

/* Sends the first count numbers to the balloon and waits until it has used them. */
static void send(u32 which, u32 count)
{
    struct queue *queue = &queues[which];
    u16 before = queue->available.index;
    queue->descriptors[0].address = (u64)numbers;
    queue->descriptors[0].length = count * sizeof numbers[0];
    queue->available.ring[before % QUEUE_SIZE] = 0;
    __atomic_store_n(&queue->available.index, (u16)(before + 1), __ATOMIC_RELEASE);
    *reg(0x50) = which;
    while (__atomic_load_n(&queue->used.index, __ATOMIC_ACQUIRE) == before) __builtin_ia32_pause();
}

/* What each page has. */

static u32 generations[PAGES];
static u32 held; /* by the balloon: the last pages */

static u64 seed_of(u64 page, u32 generation)
{
    u64 seed = (page << 32 | generation) * 0x9e3779b97f4a7c15;
    return (seed ^ seed >> 29) * 0xbf58476d1ce4e5b9 | 1;
}

static void write_page(u64 page, u32 generation)
{
    u64 *words = (u64 *)(page * PAGE);
    u64 seed = seed_of(page, generation);
    for (u64 i = 0; i < RAM_WORDS; i++) words[i] = seed + i * 0x94d049bb133111eb;
    generations[page] = generation;
}

static void check_page(u64 page)
{
    const volatile u64 *words = (u64 *)(page * PAGE);
    u64 seed = generations[page] ? seed_of(page, generations[page]) : 0;
    u64 step = generations[page] ? 0x94d049bb133111eb : 0;
    for (u64 i = 0; i < RAM_WORDS; i++) {
        u64 word = words[i];
        if (word == seed + i * step) continue;
        print("wrong page ");
        print_number(page, 10);
        print(" word ");
        print_number(i, 10);
        print(" has 0x");
        print_number(word, 16);
        print(" not 0x");
        print_number(seed + i * step, 16);
        print("\n");
        for (;;) __builtin_ia32_pause();
    }
}

/*
 * Gives a batch of pages to the balloon. Of every other batch the even pages come first and then the odd ones, so that each page is
 * removed by itself; the others are removed as one range.
 */
static void inflate(u32 count)
{
    u32 sent = 0;
    if (held / BATCH % 2) {
        for (u32 i = 0; i < count; i += 2) numbers[sent++] = PAGES - 1 - held - i;
        send(0, sent);
        sent = 0;
        for (u32 i = 1; i < count; i += 2) numbers[sent++] = PAGES - 1 - held - i;
    } else {
        for (u32 i = 0; i < count; i++) numbers[sent++] = PAGES - 1 - held - i;
    }

    if (sent) send(0, sent);
    held += count;
}

/* Takes a batch of pages back, which must be zero, and uses every page of it but each fourth again. */
static void deflate(u32 count, u32 generation)
{
    for (u32 i = 0; i < count; i++) numbers[i] = PAGES - held + i;
    send(1, count);
    held -= count;
    for (u32 i = 0; i < count; i++) {
        generations[numbers[i]] = 0;
        check_page(numbers[i]);
        if (numbers[i] % 4) write_page(numbers[i], generation);
    }
}

static void resize_balloon(u32 generation)
{
    u32 target = *reg(0x100);
    while (held < target) {
        u32 left = BATCH - held % BATCH;
        inflate(target - held < left ? target - held : left);
    }

    while (held > target) {
        u32 left = (held - 1) % BATCH + 1;
        deflate(held - target < left ? held - target : left, generation);
    }

    *reg(0x104) = held;
}

extern const u8 trampoline[], trampoline_end[];

/* INIT and SIPI by the local APIC to the processor whose number is 1. */
static void start_second(void)
{
    volatile u32 *apic = (volatile u32 *)0xfee00000ul;
    for (const u8 *from = trampoline; from < trampoline_end; from++) *(u8 *)(TRAMPOLINE + (u64)(from - trampoline)) = *from;
    apic[0x310 / 4] = 1 << 24;
    apic[0x300 / 4] = 0x4500;
    apic[0x310 / 4] = 1 << 24;
    apic[0x300 / 4] = 0x4600 | TRAMPOLINE / PAGE;
}

void second_guest(void)
{
    for (u64 random = 1;;) {
        random ^= random << 13;
        random ^= random >> 7;
        random ^= random << 17;
        (void)*(volatile u64 *)(FIRST + random % (PAGES - FIRST / PAGE) * PAGE);
        for (u32 i = 0; i < 100; i++) __builtin_ia32_pause();
    }
}

void guest(const u8 *boot_parameters)
{
    device = find_device(boot_parameters);
    if (!device) print("no device on the command line\n");
    start_balloon();
    start_second();
    for (u64 page = FIRST / PAGE; page < PAGES; page++) {
        if (page % 16 != 15) write_page(page, 1);
    }

    for (u32 round = 1;; round++) {
        resize_balloon(round + 1);
        for (u64 page = FIRST / PAGE; page < PAGES - held; page++) {
            check_page(page);
            if (generations[page] && page % 8 == round % 8) write_page(page, round + 1);
        }

        print("round ");
        print_number(round, 10);
        print(" balloon ");
        print_number(held, 10);
        print(" ok\n");
    }
}
