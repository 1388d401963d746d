/*
 * What a search or a comparison of memory cannot be quicker than: the same bytes read once on every CPU, in pieces as GuestMemory takes them.
 *
 *     memory-read [--filter NAME] [--reps N] [--mib N]
 *
 * read_direct     anonymous memory, where it lies
 * read_guarded    a mapped file on tmpfs, copied by process_vm_readv(2) in pieces of 256 KiB, and the copies read
 * compare_direct  two anonymous memories, by memcmp(3)
 *
 * Prints a line of JSON a benchmark: nanoseconds, the median of the repetitions.
 */
#define _GNU_SOURCE
#include <pthread.h>
#include <sched.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/uio.h>
#include <time.h>
#include <unistd.h>

#define PIECE (4ul << 20)
#define BLOCK (256ul << 10)
#define MOST 64

typedef uint64_t vector __attribute__((vector_size(32), aligned(1), may_alias));

static char *memory, *other, *file;
static size_t size, next_piece;
static volatile uint64_t sink;

static uint64_t read_once(const char *from, size_t length)
{
    vector a = { 0 }, b = { 0 }, c = { 0 }, d = { 0 };
    for (size_t at = 0; at < length; at += 128) {
        a |= *(const vector *)(from + at);
        b |= *(const vector *)(from + at + 32);
        c |= *(const vector *)(from + at + 64);
        d |= *(const vector *)(from + at + 96);
    }
    a |= b | c | d;
    return a[0] | a[1] | a[2] | a[3];
}

static void direct(char *buffer, size_t at)
{
    (void)buffer;
    sink = read_once(memory + at, BLOCK);
}

static void guarded(char *buffer, size_t at)
{
    struct iovec local = { buffer, BLOCK }, remote = { file + at, BLOCK };
    if (process_vm_readv(getpid(), &local, 1, &remote, 1, 0) != (ssize_t)BLOCK) exit(1);
    sink = read_once(buffer, BLOCK);
}

static void compared(char *buffer, size_t at)
{
    (void)buffer;
    if (memcmp(memory + at, other + at, BLOCK)) exit(1);
}

static void *work(void *argument)
{
    void (*body)(char *, size_t) = (void (*)(char *, size_t))argument;
    char *buffer = aligned_alloc(4096, BLOCK);
    for (size_t at; (at = __atomic_fetch_add(&next_piece, PIECE, __ATOMIC_RELAXED)) < size;)
        for (size_t done = 0; done < PIECE; done += BLOCK) body(buffer, at + done);
    free(buffer);
    return NULL;
}

static double now(void)
{
    struct timespec time;
    clock_gettime(CLOCK_MONOTONIC, &time);
    return time.tv_sec * 1e9 + time.tv_nsec;
}

static int compare(const void *left, const void *right)
{
    double a = *(const double *)left, b = *(const double *)right;
    return (a > b) - (a < b);
}

static void measure(const char *filter, const char *name, void (*body)(char *, size_t), int repetitions)
{
    double times[MOST];
    pthread_t threads[MOST];
    cpu_set_t cpus;
    if (!strstr(name, filter)) return;
    sched_getaffinity(0, sizeof cpus, &cpus);
    int count = CPU_COUNT(&cpus) < MOST ? CPU_COUNT(&cpus) : MOST;
    for (int i = -1; i < repetitions; i++) {
        next_piece = 0;
        double start = now();
        for (int t = 0; t < count; t++) if (pthread_create(&threads[t], NULL, work, (void *)body)) exit(1);
        for (int t = 0; t < count; t++) pthread_join(threads[t], NULL);
        if (i >= 0) times[i] = now() - start;
    }
    qsort(times, repetitions, sizeof *times, compare);
    printf("{\"bench\":\"%s\",\"ns_op\":%.1f}\n", name, times[repetitions / 2]);
}

static char *map(int descriptor)
{
    char *mapping = mmap(NULL, size, PROT_READ | PROT_WRITE, descriptor < 0 ? MAP_PRIVATE | MAP_ANONYMOUS : MAP_SHARED, descriptor, 0);
    if (mapping == MAP_FAILED) exit(1);
    uint64_t value = 1;
    /* As SearchRows fills it: bytes that look random, without the bytes that are searched for. */
    for (size_t at = 0; at < size; at += 8) {
        value = value * 6364136223846793005u + 1442695040888963407u;
        uint64_t word = (value >> 8) & 0x7f7f7f7f7f7f7f7fu;
        memcpy(mapping + at, &word, 8);
    }
    return mapping;
}

int main(int count, char **arguments)
{
    const char *filter = "";
    int repetitions = 5;
    size = 1024ul << 20;
    for (int i = 1; i + 1 < count; i += 2) {
        if (!strcmp(arguments[i], "--filter")) filter = arguments[i + 1];
        if (!strcmp(arguments[i], "--reps")) repetitions = atoi(arguments[i + 1]);
        if (!strcmp(arguments[i], "--mib")) size = strtoul(arguments[i + 1], NULL, 10) << 20;
    }
    if (repetitions < 1 || repetitions > MOST || size % PIECE) return 2;
    int descriptor = memfd_create("memory-read", MFD_CLOEXEC);
    if (descriptor < 0 || ftruncate(descriptor, size)) return 1;
    memory = map(-1);
    other = map(-1);
    file = map(descriptor);
    measure(filter, "read_direct", direct, repetitions);
    measure(filter, "read_guarded", guarded, repetitions);
    measure(filter, "compare_direct", compared, repetitions);
    return 0;
}
