/*
 * A guest whose vCPUs do the steps of live-peer.c for ever: vCPU T writes pages of the memory at MEMORY, or has the host take them away, in an order that follows from its
 * steps alone. It gives a page away by storing its address at DEVICE, where no memory is. It begins in ring 0 and goes to ring 3 at once, since KVM's page-table based back end
 * emulates ring 0 and runs ring 3 natively. RDI is T, and RSI the number of pages.
 */
#ifndef __x86_64__
int main(void)
{
    return 0;
}
#else
typedef unsigned long u64;

#define PAGE 4096ul
#define MEMORY 0x1000000ul
#define DEVICE 0x20000000ul

__asm__(
    ".pushsection .boot, \"ax\"\n"
    ".globl start\n"
    "start:\n"
    "    lgdt gdtr(%rip)\n"
    "    lea pml4(%rip), %rax\n"
    "    mov %rax, %cr3\n"
    "    lea stacks_end(%rip), %rax\n"
    "    mov %rdi, %rcx\n"
    "    shl $12, %rcx\n"
    "    sub %rcx, %rax\n"
    "    mov %rax, %rsp\n"
    "    sub $264, %rax\n" /* below what is pushed here */
    "    lea guest(%rip), %rdx\n"
    "    pushq $0x2b\n"
    "    pushq %rax\n"
    "    pushq $0x2\n"
    "    pushq $0x33\n"
    "    pushq %rdx\n"
    "    iretq\n"
    /* Accessed and dirty already, so that nobody writes to the tables. The first GiB at its addresses. */
    ".balign 4096\n"
    "pml4: .quad pdpt + 0x27\n"
    "    .fill 511, 8, 0\n"
    "pdpt: .quad low + 0x27\n"
    "    .fill 511, 8, 0\n"
    "low: .set at, 0\n"
    "    .rept 512\n"
    "    .quad at + 0xe7\n"
    "    .set at, at + 0x200000\n"
    "    .endr\n"
    /* The selectors of ring 3 are those of Linux. */
    "gdt: .quad 0, 0x00af9b000000ffff, 0x00cf93000000ffff, 0, 0, 0x00cff3000000ffff, 0x00affb000000ffff\n"
    "gdtr: .word gdtr - gdt - 1\n"
    "    .quad gdt\n"
    ".balign 4096\n"
    "    .fill 8192, 1, 0\n"
    "stacks_end:\n"
    ".popsection\n");

static u64 mix(u64 x)
{
    x += 0x9e3779b97f4a7c15u;
    x = (x ^ x >> 30) * 0xbf58476d1ce4e5b9u;
    x = (x ^ x >> 27) * 0x94d049bb133111ebu;
    return x ^ x >> 31;
}

static u64 *progress(u64 vcpu)
{
    return (u64 *)(MEMORY + vcpu * 64);
}

__attribute__((used)) void guest(u64 self, u64 pages)
{
    for (u64 step = 1;; step++) {
        u64 h = mix(2 * step + self);
        volatile u64 *words = (volatile u64 *)(MEMORY + (2 + 2 * (h % (pages / 2 - 1)) + self) * PAGE);
        if ((h >> 32) % 16 == 0) {
            *(volatile u64 *)DEVICE = (u64)words;
        } else {
            words[0] = step;
            words[1] = __atomic_load_n(progress(1 - self), __ATOMIC_SEQ_CST);
            words[511] = step;
        }

        __atomic_store_n(progress(self), step, __ATOMIC_SEQ_CST);
    }
}
#endif
