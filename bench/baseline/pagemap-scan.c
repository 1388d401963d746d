/*
 * Which pages of another process's memory were written, with nothing in the way: PAGEMAP_SCAN of memory that a userfaultfd tracks (WP_ASYNC),
 * from outside, and each range that it gives marked in a bitmap, as GuestMemory does it.
 *
 *     pagemap-scan [--filter NAME] [--reps N] [--mib N]
 *     pagemap-scan target MIB         the process that is tracked by another program: prints the address of its memory, and
 *                                     writes each Nth page for a line "N", answered by "ok"
 *
 * Prints a line of JSON a benchmark: nanoseconds a scan, the median of the repetitions.
 */
#define _GNU_SOURCE
#include <fcntl.h>
#include <linux/fs.h>
#include <linux/userfaultfd.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/ioctl.h>
#include <sys/mman.h>
#include <sys/prctl.h>
#include <sys/syscall.h>
#include <time.h>
#include <unistd.h>
#include <signal.h>

/* What the headers of Linux 6.7 have. */
struct scan_region {
    uint64_t start, end, categories;
};

struct scan_arg {
    uint64_t size, flags, start, end, walk_end, vec, vec_len, max_pages, category_inverted, category_mask, category_anyof_mask, return_mask;
};

#define SCAN _IOWR('f', 16, struct scan_arg)
#define WRITTEN 2ull
#define PRESENT 8ull
#define SWAPPED 16ull
#define WP_MATCHING 1ull
#define CHECK_WPASYNC 2ull
#define WP_UNPOPULATED (1 << 13)
#define WP_ASYNC (1 << 15)
#define REGIONS 1024
#define PIECE (256 << 10)

static size_t page, size;
static char *memory;
static uint64_t *bits;
static struct scan_region regions[REGIONS];
static char buffer[PIECE];
static int pagemap, contents, to_child[2], from_child[2];

static void check(int ok, const char *what)
{
    if (ok) return;
    perror(what);
    exit(1);
}

static double now(void)
{
    struct timespec time;
    clock_gettime(CLOCK_MONOTONIC, &time);
    return time.tv_sec * 1e9 + time.tv_nsec;
}

static void map_memory(void)
{
    memory = mmap(NULL, size, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
    check(memory != MAP_FAILED && madvise(memory, size, MADV_NOHUGEPAGE) == 0, "mmap");
    memset(memory, 1, size);
}

static void serve(FILE *in, FILE *out)
{
    static unsigned value;
    char line[32];
    while (fgets(line, sizeof line, in)) {
        size_t step = strtoul(line, NULL, 10);
        value++;
        for (size_t at = 0; step && at < size; at += step * page) *(volatile unsigned *)(memory + at) = value;
        fputs("ok\n", out);
        fflush(out);
    }
}

static void track_oneself(void)
{
    int uffd = syscall(SYS_userfaultfd, O_CLOEXEC | O_NONBLOCK | 1 /* UFFD_USER_MODE_ONLY */);
    struct uffdio_api api = { .api = UFFD_API, .features = WP_ASYNC | WP_UNPOPULATED };
    struct uffdio_register range = { .range = { (uintptr_t)memory, size }, .mode = UFFDIO_REGISTER_MODE_WP };
    struct uffdio_writeprotect protect = { .range = { (uintptr_t)memory, size }, .mode = UFFDIO_WRITEPROTECT_MODE_WP };
    check(uffd >= 0 && ioctl(uffd, UFFDIO_API, &api) == 0 && ioctl(uffd, UFFDIO_REGISTER, &range) == 0 && ioctl(uffd, UFFDIO_WRITEPROTECT, &protect) == 0, "userfaultfd");
}

static pid_t start_child(void)
{
    char answer[3];
    check(pipe(to_child) == 0 && pipe(from_child) == 0, "pipe");
    map_memory();
    pid_t child = fork();
    check(child >= 0, "fork");
    if (child == 0) {
        prctl(PR_SET_PDEATHSIG, SIGKILL);
        /* Pages of its own. */
        memset(memory, 2, size);
        track_oneself();
        check(write(from_child[1], "ok\n", 3) == 3, "pipe");
        serve(fdopen(to_child[0], "r"), fdopen(from_child[1], "w"));
        _exit(0);
    }
    check(read(from_child[0], answer, 3) == 3, "pipe");
    munmap(memory, size);
    return child;
}

static void write_each(int step)
{
    char text[16];
    int length = snprintf(text, sizeof text, "%d\n", step);
    check(write(to_child[1], text, length) == length && read(from_child[0], text, 3) == 3, "pipe");
}

static void scan(uint64_t flags)
{
    uint64_t start = (uintptr_t)memory, end = start + size;
    struct scan_arg arg = {
        .size = sizeof arg, .flags = CHECK_WPASYNC | flags, .start = start, .end = end, .vec = (uintptr_t)regions, .vec_len = REGIONS,
        .category_inverted = PRESENT, .category_anyof_mask = WRITTEN | PRESENT, .return_mask = WRITTEN | SWAPPED,
    };
    while (arg.start < end) {
        int count = ioctl(pagemap, SCAN, &arg);
        check(count >= 0, "PAGEMAP_SCAN");
        for (int i = 0; i < count; i++) {
            if (regions[i].categories == SWAPPED) continue;
            for (size_t at = (regions[i].start - start) / page; at < (regions[i].end - start) / page; at++) bits[at >> 6] |= 1ull << (at & 63);
        }
        arg.start = count < REGIONS ? end : arg.walk_end;
    }
}

static void look(void)
{
    scan(0);
}

static void take(void)
{
    scan(WP_MATCHING);
    memset(bits, 0, size / page / 8);
}

static void read_all(void)
{
    for (size_t at = 0; at < size / 16; at += PIECE) check(pread(contents, buffer, PIECE, (uintptr_t)memory + at) == PIECE, "mem");
}

static int compare(const void *left, const void *right)
{
    double a = *(const double *)left, b = *(const double *)right;
    return (a > b) - (a < b);
}

static void measure(const char *filter, const char *name, int step, void (*body)(void), int repetitions)
{
    double times[64];
    if (!strstr(name, filter)) return;
    take();
    for (int i = -1; i < repetitions; i++) {
        if (step) write_each(step);
        double start = now();
        body();
        if (i >= 0) times[i] = now() - start;
    }
    qsort(times, repetitions, sizeof *times, compare);
    printf("{\"bench\":\"%s\",\"ns_op\":%.1f}\n", name, times[repetitions / 2]);
}

int main(int count, char **arguments)
{
    const char *filter = "";
    int repetitions = 5;
    char path[64];

    page = sysconf(_SC_PAGESIZE);
    size = 1024ul << 20;
    if (count == 3 && !strcmp(arguments[1], "target")) {
        size = strtoul(arguments[2], NULL, 10) << 20;
        map_memory();
        printf("%zu\n", (size_t)memory);
        fflush(stdout);
        serve(stdin, stdout);
        return 0;
    }
    for (int i = 1; i + 1 < count; i += 2) {
        if (!strcmp(arguments[i], "--filter")) filter = arguments[i + 1];
        if (!strcmp(arguments[i], "--reps")) repetitions = atoi(arguments[i + 1]);
        if (!strcmp(arguments[i], "--mib")) size = strtoul(arguments[i + 1], NULL, 10) << 20;
    }
    check(repetitions > 0 && repetitions <= 64 && size > 0, "--reps, --mib");
    bits = calloc(size / page / 64 + 1, 8);
    pid_t child = start_child();
    snprintf(path, sizeof path, "/proc/%d/pagemap", child);
    pagemap = open(path, O_RDONLY | O_CLOEXEC);
    snprintf(path, sizeof path, "/proc/%d/mem", child);
    contents = open(path, O_RDONLY | O_CLOEXEC);
    check(pagemap >= 0 && contents >= 0, path);
    measure(filter, "scan_clean", 0, look, repetitions);
    measure(filter, "take_clean", 0, take, repetitions);
    measure(filter, "scan_eighth", 8, look, repetitions);
    measure(filter, "take_eighth", 8, take, repetitions);
    measure(filter, "read_sixteenth", 0, read_all, repetitions);
    return 0;
}
