// A process of the guest of Kernel.Tests.ps1, with three threads, of another user, with a child that has ended, and with memory whose content is
// known: from 0x10000000 on, 3 MiB and 100 bytes, each 4 bytes their own address. Says "ready", and waits.
#include <pthread.h>
#include <stdint.h>
#include <stdio.h>
#include <sys/mman.h>
#include <unistd.h>

static void *wait_here(void *unused)
{
    (void)unused;
    for (;;)
        pause();
}

int main(void)
{
    const uintptr_t start = 0x10000000;
    const size_t size = (3 << 20) + 4096;
    pthread_t thread;

    if (mmap((void *)start, size, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS | MAP_FIXED_NOREPLACE, -1, 0) == MAP_FAILED)
        return 1;
    for (size_t at = 0; at < (3 << 20) + 100; at += 4)
        *(uint32_t *)(start + at) = (uint32_t)(start + at);
    for (int i = 0; i < 2; i++)
        if (pthread_create(&thread, 0, wait_here, 0))
            return 2;
    if (fork() == 0)
        _exit(0);
    if (setuid(1234))
        return 3;
    puts("ready");
    fflush(stdout);
    wait_here(0);
    return 0;
}
