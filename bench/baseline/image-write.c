/*
 * What an export of dirty pages cannot be quicker than: the pages of anonymous memory that are marked in a bitmap, a tenth at random, written to a file on tmpfs.
 *
 *     image-write [--filter NAME] [--reps N] [--mib N]
 *
 * diff_packed   one behind the other, by pwritev(2) of 1024 runs a call; the file has no holes, and does not say where a page belongs
 * diff_pwrite   each run at its place in a sparse file, by pwrite(2)
 *
 * Prints a line of JSON a benchmark: nanoseconds, the median of the repetitions.
 */
#define _GNU_SOURCE
#include <fcntl.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/stat.h>
#include <sys/uio.h>
#include <time.h>
#include <unistd.h>

#define PAGE 4096ul
#define RUNS 1024

static char *memory;
static uint64_t *dirty;
static size_t size, pages;

static void check(int is_right, const char *what)
{
    if (!is_right) {
        perror(what);
        exit(1);
    }
}

/* The next run of dirty pages from a page on; 0 where there is none. */
static size_t next_run(size_t *from)
{
    size_t page = *from;
    while (page < pages) {
        uint64_t word = dirty[page / 64] >> (page % 64);
        if (word) {
            page += (size_t)__builtin_ctzll(word);
            break;
        }
        page = (page / 64 + 1) * 64;
    }
    if (page >= pages)
        return 0;
    size_t end = page;
    while (end < pages && dirty[end / 64] >> (end % 64) & 1)
        end++;
    *from = page;
    return end - page;
}

static void packed(int file)
{
    static struct iovec runs[RUNS];
    off_t at = 0;
    int count = 0;
    ssize_t bytes = 0;
    for (size_t page = 0, length;; page += length) {
        length = next_run(&page);
        if (length) {
            runs[count].iov_base = memory + page * PAGE;
            runs[count++].iov_len = length * PAGE;
            bytes += (ssize_t)(length * PAGE);
        }
        if (count == RUNS || (count && !length)) {
            check(pwritev(file, runs, count, at) == bytes, "pwritev");
            at += bytes;
            bytes = count = 0;
        }
        if (!length)
            break;
    }
}

static void in_place(int file)
{
    for (size_t page = 0, length; (length = next_run(&page)); page += length)
        check(pwrite(file, memory + page * PAGE, length * PAGE, (off_t)(page * PAGE)) == (ssize_t)(length * PAGE), "pwrite");
}

static int compare(const void *a, const void *b)
{
    double x = *(const double *)a, y = *(const double *)b;
    return (x > y) - (x < y);
}

static double now(void)
{
    struct timespec time;
    clock_gettime(CLOCK_MONOTONIC, &time);
    return (double)time.tv_sec * 1e9 + (double)time.tv_nsec;
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
    pages = size / PAGE;
    dirty = calloc(pages / 64 + 1, sizeof *dirty);
    memory = mmap(NULL, size, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
    double *times = calloc((size_t)repetitions, sizeof *times);
    check(dirty && times && memory != MAP_FAILED, "memory");
    memset(memory, 0, size);
    uint64_t random = 88172645463325252ull;
    for (size_t i = 0; i < pages / 100 * 10; i++) {
        random ^= random << 13;
        random ^= random >> 7;
        random ^= random << 17;
        size_t page = random % pages;
        *(uint64_t *)(memory + page * PAGE) = random | 1;
        dirty[page / 64] |= 1ull << (page % 64);
    }

    struct { const char *name; void (*body)(int); } bodies[] = { { "diff_packed", packed }, { "diff_pwrite", in_place } };
    char path[64];
    snprintf(path, sizeof path, "%s/image-write.%d", access("/dev/shm", W_OK) ? "/tmp" : "/dev/shm", (int)getpid());
    for (size_t i = 0; i < sizeof bodies / sizeof *bodies; i++) {
        if (!strstr(bodies[i].name, filter))
            continue;
        for (int repetition = -1; repetition < repetitions; repetition++) {
            int file = open(path, O_RDWR | O_CREAT | O_TRUNC, 0600);
            check(file >= 0 && !ftruncate(file, (off_t)size), path);
            double start = now();
            bodies[i].body(file);
            if (repetition >= 0)
                times[repetition] = now() - start;
            close(file);
            unlink(path);
        }
        qsort(times, (size_t)repetitions, sizeof *times, compare);
        printf("{\"bench\":\"%s\",\"ns_op\":%.0f}\n", bodies[i].name, times[repetitions / 2]);
    }
    return 0;
}
