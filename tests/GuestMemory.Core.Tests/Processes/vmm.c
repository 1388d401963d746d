// A process with the mappings of a VMM, and nothing else of one: for tests that find them. What it is called, the caller says.
//   vmm PART... [--OPTION...]      PART: anon:MIB, memfd:NAME:MIB[+MIB...], file:PATH:MIB (shared), private:PATH:MIB
// Each part is preceded and followed by memory without access. The first eight bytes of a part are its number, from 1 on. A thread counts in the
// second page of the first one. "watch" on standard input has a userfaultfd provide the third page of the first part; it is answered by "ok" or "no".
#define _GNU_SOURCE
#include <fcntl.h>
#include <linux/userfaultfd.h>
#include <pthread.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/ioctl.h>
#include <sys/mman.h>
#include <sys/syscall.h>
#include <unistd.h>

static unsigned char *first;
static uint64_t count;
static long page;

static void fail(const char *what)
{
    perror(what);
    exit(1);
}

static void map(int file, uint64_t offset, uint64_t size, int flags)
{
    unsigned char *reserved = mmap(NULL, size + 2 * page, PROT_NONE, MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0);
    if (reserved == MAP_FAILED) fail("mmap");
    unsigned char *memory = mmap(reserved + page, size, PROT_READ | PROT_WRITE, MAP_FIXED | MAP_NORESERVE | flags, file, (off_t)offset);
    if (memory == MAP_FAILED) fail("mmap");
    count++;
    memcpy(memory, &count, sizeof count);
    if (!first) first = memory;
    printf("%llu %llu\n", (unsigned long long)(uintptr_t)memory, (unsigned long long)size);
}

static void *run(void *unused)
{
    volatile uint64_t *counter = (volatile uint64_t *)(first + page);
    for (;;) ++*counter;
    return unused;
}

static int watch(void)
{
    int file = (int)syscall(SYS_userfaultfd, O_CLOEXEC | O_NONBLOCK);
    struct uffdio_api api = { .api = UFFD_API };
    struct uffdio_register range = { .range = { .start = (uintptr_t)first + 2 * page, .len = page }, .mode = UFFDIO_REGISTER_MODE_MISSING };
    return file >= 0 && ioctl(file, UFFDIO_API, &api) == 0 && ioctl(file, UFFDIO_REGISTER, &range) == 0;
}

int main(int argc, char **argv)
{
    page = sysconf(_SC_PAGESIZE);
    for (int i = 1; i < argc && strncmp(argv[i], "--", 2); i++) {
        char *kind = strtok(argv[i], ":"), *name = strcmp(kind, "anon") ? strtok(NULL, ":") : NULL, *sizes = strtok(NULL, ":");
        if (!sizes) return 2;
        int file = -1, flags = MAP_PRIVATE | MAP_ANONYMOUS;
        if (!strcmp(kind, "memfd")) file = memfd_create(name, MFD_CLOEXEC);
        else if (name) file = open(name, O_RDWR | O_CREAT | O_CLOEXEC, 0600);
        if (name && file < 0) fail(name);
        if (name) flags = strcmp(kind, "private") ? MAP_SHARED : MAP_PRIVATE;
        uint64_t offset = 0;
        for (char *size = strtok(sizes, "+"); size; size = strtok(NULL, "+")) {
            uint64_t bytes = strtoull(size, NULL, 10) << 20;
            if (file >= 0 && ftruncate(file, (off_t)(offset + bytes))) fail("ftruncate");
            map(file, file < 0 ? 0 : offset, bytes, flags);
            offset += bytes;
        }
    }
    pthread_t thread;
    if (!first || pthread_create(&thread, NULL, run, NULL)) return 2;
    printf("ready\n");
    fflush(stdout);
    char line[64];
    while (fgets(line, sizeof line, stdin)) {
        printf("%s\n", watch() ? "ok" : "no");
        fflush(stdout);
    }
    return 0;
}
