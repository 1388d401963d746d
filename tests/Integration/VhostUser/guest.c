// What runs in the guest of VhostUser.Tests.ps1. All accesses to the disk pass by the guest's page cache (O_DIRECT).
//
// guest load FILE THREADS EXPECTED
//     Writes the blocks of a file that is there, at full speed, until it gets SIGTERM. Each block holds its number and its generation. Each
//     thread reads blocks again between its writes, and has the disk flush; a block must have the newest generation that a write was
//     acknowledged of, and a buffer must not change after its request has ended. Then all blocks are read once more, and EXPECTED gets what
//     the file must hold.
// guest pages FILE COUNT BELOW
//     Leaves something in each page of most of the memory, since empty pages take no room in a migration; and keeps COUNT pages whose guest
//     addresses, which it says, are less than BELOW. At SIGUSR1 the disk reads FILE into half of them, page by page. At SIGUSR2 it says whether all
//     hold what they should. It never writes to them itself.
//
// Ends with 1, and a line that says why, where something is wrong.
#define _GNU_SOURCE
#include <errno.h>
#include <fcntl.h>
#include <pthread.h>
#include <signal.h>
#include <stdarg.h>
#include <stdatomic.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/stat.h>
#include <sys/uio.h>
#include <unistd.h>

enum { BLOCK = 4096, WORDS = BLOCK / 8, MOST = 8, SECTOR = 512, PIECES = 8 };

static int file;
static uint64_t block_count;
static uint64_t *generations; // Of each block: the newest that was acknowledged. The thread that owns the block writes it.
static unsigned thread_count;
static atomic_int over;
static atomic_ulong writes, reads, flushes;

static void fail(const char *format, ...) {
    va_list arguments;
    va_start(arguments, format);
    flockfile(stdout);
    printf("wrong: ");
    vprintf(format, arguments);
    printf("\n");
    fflush(stdout);
    _exit(1);
}

static uint64_t mix(uint64_t value) {
    value = (value ^ value >> 30) * 0xbf58476d1ce4e5b9;
    value = (value ^ value >> 27) * 0x94d049bb133111eb;
    return value ^ value >> 31;
}

static void fill(uint64_t *block, uint64_t number, uint64_t generation) {
    block[0] = number;
    block[1] = generation;
    for (unsigned i = 2; i < WORDS; i++) block[i] = (number << 40 ^ generation << 10 ^ i);
}

static void check(const uint64_t *block, uint64_t number) {
    uint64_t generation = generations[number];
    if (block[0] != number || block[1] != generation)
        fail("block %lu has generation %lu; it is block %lu, of generation %lu", (unsigned long)block[0], (unsigned long)block[1], (unsigned long)number, (unsigned long)generation);
    for (unsigned i = 2; i < WORDS; i++)
        if (block[i] != (number << 40 ^ generation << 10 ^ i)) fail("block %lu, generation %lu: word %u", (unsigned long)number, (unsigned long)generation, i);
}

// A buffer for reads begins at any sector of a page. One for writes does not: with ext4 that would be one write at a time.
static char *buffer(uint64_t random) {
    char *memory;
    if (posix_memalign((void **)&memory, BLOCK, (MOST + 1) * BLOCK)) fail("no memory");
    memset(memory, 0, (MOST + 1) * BLOCK);
    return memory + random % (BLOCK / SECTOR) * SECTOR;
}

static void read_blocks(void *to, uint64_t first, unsigned count) {
    ssize_t got = pread(file, to, (size_t)count * BLOCK, (off_t)(first * BLOCK));
    if (got != (ssize_t)count * BLOCK) fail("reading %u blocks at %lu gave %zd: %s", count, (unsigned long)first, got, got < 0 ? strerror(errno) : "");
    reads++;
}

static void write_blocks(const void *from, uint64_t first, unsigned count) {
    ssize_t put = pwrite(file, from, (size_t)count * BLOCK, (off_t)(first * BLOCK));
    if (put != (ssize_t)count * BLOCK) fail("writing %u blocks at %lu gave %zd: %s", count, (unsigned long)first, put, put < 0 ? strerror(errno) : "");
    writes++;
}

static void *work(void *argument) {
    uint64_t thread = (uintptr_t)argument, per = block_count / thread_count, start = thread * per, random = mix(thread + 1);
    char *out = buffer(0), *in[2] = {buffer(random >> 16), buffer(random >> 24)};
    for (uint64_t generation = 1, turn = 0; !over; generation++, turn ^= 1) {
        random = mix(random + generation);
        unsigned count = 1 + random % MOST;
        uint64_t first = start + (random >> 8) % (per - count + 1);
        for (unsigned i = 0; i < count; i++) fill((uint64_t *)(out + i * BLOCK), first + i, generation);
        write_blocks(out, first, count);
        for (unsigned i = 0; i < count; i++) generations[first + i] = generation;

        // A buffer is empty from the end of its request until the next request for it.
        count = 1 + (random >> 24) % MOST;
        first = start + (random >> 32) % (per - count + 1);
        uint64_t *words = (uint64_t *)in[turn], *former = (uint64_t *)in[turn ^ 1];
        read_blocks(words, first, count);
        for (unsigned i = 0; i < count; i++)
            if (generations[first + i]) check(words + i * WORDS, first + i);
        for (unsigned i = 0; i < MOST * WORDS; i++)
            if (former[i] != 0) fail("a buffer has changed after its request had ended");
        memset(words, 0, MOST * BLOCK);

        if (generation % 16 == 0) {
            if (fdatasync(file)) fail("fdatasync: %s", strerror(errno));
            flushes++;
        }
    }
    return NULL;
}

static void say_expected(const char *path) {
    FILE *expected = fopen(path, "w");
    uint64_t block[WORDS];
    if (!expected) fail("%s: %s", path, strerror(errno));
    for (uint64_t number = 0; number < block_count; number++) {
        fill(block, number, generations[number]);
        if (fwrite(block, BLOCK, 1, expected) != 1) fail("%s: %s", path, strerror(errno));
    }
    if (fclose(expected)) fail("%s: %s", path, strerror(errno));
}

static void wait_for(int number) {
    sigset_t set;
    int got;
    sigemptyset(&set);
    sigaddset(&set, number);
    if (sigwait(&set, &got)) fail("sigwait");
}

static int load(const char *expected) {
    uint64_t *last = (uint64_t *)buffer(0);
    block_count = block_count / thread_count * thread_count;
    generations = calloc(block_count, sizeof *generations);
    pthread_t threads[thread_count];
    for (uintptr_t i = 0; i < thread_count; i++)
        if (pthread_create(&threads[i], NULL, work, (void *)i)) fail("pthread_create");
    wait_for(SIGTERM);
    over = 1;
    for (unsigned i = 0; i < thread_count; i++) pthread_join(threads[i], NULL);
    // What no thread has come to.
    for (uint64_t number = 0; number < block_count; number++) {
        if (generations[number]) continue;
        fill(last, number, generations[number] = 1);
        write_blocks(last, number, 1);
    }
    for (uint64_t number = 0; number < block_count; number++) {
        read_blocks(last, number, 1);
        check(last, number);
    }
    if (fsync(file)) fail("fsync: %s", strerror(errno));
    say_expected(expected);
    printf("%lu writes, %lu reads, %lu flushes\n", (unsigned long)writes, (unsigned long)reads, (unsigned long)flushes);
    return 0;
}

static uint64_t address_of(const void *page) {
    static int map = -1;
    uint64_t entry = 0;
    if (map < 0) map = open("/proc/self/pagemap", O_RDONLY);
    if (pread(map, &entry, sizeof entry, (off_t)((uintptr_t)page / BLOCK * sizeof entry)) != sizeof entry) fail("pagemap: %s", strerror(errno));
    return (entry & ((UINT64_C(1) << 55) - 1)) * BLOCK;
}

static int is_chosen(uint64_t page) { return mix(page + 12345) & 1; }

static int pages(unsigned count, uint64_t below) {
    size_t size = 160 << 20;
    char *memory = mmap(NULL, size, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0), *page[count];
    uint64_t *wanted = malloc((size_t)count * BLOCK), addresses[count];
    unsigned found = 0;
    if (memory == MAP_FAILED || !wanted || madvise(memory, size, MADV_NOHUGEPAGE) || mlock(memory, size)) fail("no memory");
    for (size_t i = 0; i < size; i += BLOCK) memory[i] = 1;
    for (size_t i = 0; i < size; i += BLOCK) {
        uint64_t address = address_of(memory + i);
        if (address < below && found < count) {
            addresses[found] = address;
            page[found++] = memory + i;
        }
        else munmap(memory + i, BLOCK);
    }
    if (found < count) fail("%u pages are below 0x%lx", found, (unsigned long)below);
    for (unsigned i = 0; i < count; i++) {
        fill((uint64_t *)page[i], i, 0);
        memcpy((char *)wanted + (size_t)i * BLOCK, page[i], BLOCK);
        printf("page 0x%lx %s\n", (unsigned long)addresses[i], is_chosen(i) ? "disk" : "-");
    }
    printf("ready\n");
    fflush(stdout);

    wait_for(SIGUSR1);
    off_t position = 0;
    for (unsigned i = 0; i < count;) {
        struct iovec pieces[PIECES];
        int some = 0;
        for (; i < count && some < PIECES; i++)
            if (is_chosen(i)) pieces[some++] = (struct iovec){page[i], BLOCK};
        if (some && preadv(file, pieces, some, position) != (ssize_t)some * BLOCK) fail("preadv: %s", strerror(errno));
        position += (off_t)some * BLOCK;
    }
    for (unsigned i = 0; i < count; i++)
        if (address_of(page[i]) != addresses[i]) fail("the kernel has moved page %u", i);
    printf("filled\n");
    fflush(stdout);

    wait_for(SIGUSR2);
    // What the file has, by another buffer.
    position = 0;
    for (unsigned i = 0; i < count; i++) {
        char *place = (char *)wanted + (size_t)i * BLOCK;
        if (is_chosen(i)) {
            char *bytes = buffer(0);
            read_blocks(bytes, (uint64_t)position++, 1);
            memcpy(place, bytes, BLOCK);
            free(bytes);
        }
        if (memcmp(page[i], place, BLOCK)) fail("page %u holds something else", i);
    }
    printf("%u pages are right, %ld of them by the disk\n", count, (long)position);
    return 0;
}

int main(int argc, char **argv) {
    struct stat status;
    sigset_t set;
    sigemptyset(&set);
    sigaddset(&set, SIGTERM);
    sigaddset(&set, SIGUSR1);
    sigaddset(&set, SIGUSR2);
    sigprocmask(SIG_BLOCK, &set, NULL);
    if (argc != 5) fail("guest load FILE THREADS EXPECTED, or guest pages FILE COUNT BELOW");
    file = open(argv[2], O_RDWR | O_DIRECT);
    if (file < 0 || fstat(file, &status)) fail("%s: %s", argv[2], strerror(errno));
    block_count = (uint64_t)status.st_size / BLOCK;
    thread_count = (unsigned)atoi(argv[3]);
    return strcmp(argv[1], "load") == 0 ? load(argv[4]) : pages(thread_count, strtoull(argv[4], NULL, 0));
}
