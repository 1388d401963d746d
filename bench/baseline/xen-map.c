/* xen-map --reps N (in domain 0 of a Xen): what mapping memory of other domains costs, one JSON line a figure (median of N).
   XEN_MEMORY is "DOMAIN FRAME REFERENCE...": 16 MiB of the domain from the frame on, and 64 pages that domain 0 grants to itself. */
#define _GNU_SOURCE
#include <errno.h>
#include <fcntl.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/ioctl.h>
#include <sys/mman.h>
#include <time.h>
#include <unistd.h>

/* Which that header takes from the toolstack's. */
typedef uint32_t grant_ref_t;
typedef uint16_t domid_t;

#include <xen/gntdev.h>

#define PAGE 4096ul
#define FRAMES 4096u
#define GRANTS 64u

/* xen/privcmd.h takes the toolstack's headers. */
struct mmapbatch_v2 {
    uint32_t num;
    uint16_t dom;
    uint64_t addr;
    const uint64_t *arr;
    int *err;
};

#define MMAPBATCH_V2 _IOC(_IOC_NONE, 'P', 4, sizeof(struct mmapbatch_v2))

static int privcmd, gntdev, repetitions = 5;
static uint16_t domain;
static uint64_t first;
static uint32_t references[GRANTS];
static volatile uint64_t sink;

static void need(int condition, const char *what)
{
    if (condition) return;
    perror(what);
    exit(1);
}

static char *map_foreign(void)
{
    static uint64_t frames[FRAMES];
    static int errors[FRAMES];
    char *memory = mmap(NULL, FRAMES * PAGE, PROT_READ | PROT_WRITE, MAP_SHARED, privcmd, 0);
    need(memory != MAP_FAILED, "mmap of privcmd");
    for (uint64_t i = 0; i < FRAMES; i++) frames[i] = first + i;
    struct mmapbatch_v2 batch = { .num = FRAMES, .dom = domain, .addr = (uint64_t)memory, .arr = frames, .err = errors };
    need(ioctl(privcmd, MMAPBATCH_V2, &batch) == 0, "MMAPBATCH_V2");
    for (unsigned i = 0; i < FRAMES; i++) need(errors[i] == 0, "a frame");
    return memory;
}

static void foreign(void)
{
    munmap(map_foreign(), FRAMES * PAGE);
}

/* Maps granted pages, reads of the first, and gives them back. */
static void granted(unsigned from, unsigned count)
{
    char buffer[sizeof(struct ioctl_gntdev_map_grant_ref) + GRANTS * sizeof(struct ioctl_gntdev_grant_ref)];
    struct ioctl_gntdev_map_grant_ref *request = (void *)buffer;
    request->count = count;
    for (unsigned i = 0; i < count; i++) request->refs[i] = (struct ioctl_gntdev_grant_ref){ .domid = 0, .ref = references[from + i] };
    need(ioctl(gntdev, IOCTL_GNTDEV_MAP_GRANT_REF, request) == 0, "MAP_GRANT_REF");
    char *memory = mmap(NULL, count * PAGE, PROT_READ | PROT_WRITE, MAP_SHARED, gntdev, (off_t)request->index);
    need(memory != MAP_FAILED, "mmap of gntdev");
    sink = *(volatile uint64_t *)memory;
    munmap(memory, count * PAGE);
    struct ioctl_gntdev_unmap_grant_ref done = { .index = request->index, .count = count };
    need(ioctl(gntdev, IOCTL_GNTDEV_UNMAP_GRANT_REF, &done) == 0, "UNMAP_GRANT_REF");
}

static void grants(void)
{
    granted(0, GRANTS);
}

static void on_demand(void)
{
    for (unsigned i = 0; i < GRANTS; i++) granted(i, 1);
}

static int compare(const void *a, const void *b)
{
    double x = *(const double *)a, y = *(const double *)b;
    return x < y ? -1 : x > y;
}

static double now(void)
{
    struct timespec time;
    clock_gettime(CLOCK_MONOTONIC, &time);
    return (double)time.tv_sec * 1e9 + (double)time.tv_nsec;
}

static void measure(const char *name, unsigned operations, void (*body)(void))
{
    double times[64];
    for (int i = -1; i < repetitions; i++) {
        double start = now();
        body();
        if (i >= 0) times[i] = now() - start;
    }

    qsort(times, (size_t)repetitions, sizeof *times, compare);
    printf("{\"bench\":\"%s\",\"ns_op\":%.3f}\n", name, times[repetitions / 2] / operations);
}

int main(int count, char **arguments)
{
    for (int i = 1; i + 1 < count; i += 2) {
        if (!strcmp(arguments[i], "--reps")) repetitions = atoi(arguments[i + 1]);
    }

    if (repetitions < 1 || repetitions > 64) return 2;
    char *text = getenv("XEN_MEMORY");
    if (!text) return 2;
    domain = (uint16_t)strtoul(text, &text, 10);
    first = strtoull(text, &text, 10);
    for (unsigned i = 0; i < GRANTS; i++) references[i] = (uint32_t)strtoul(text, &text, 10);
    privcmd = open("/dev/xen/privcmd", O_RDWR);
    gntdev = open("/dev/xen/gntdev", O_RDWR);
    need(privcmd >= 0 && gntdev >= 0, "/dev/xen");
    measure("foreign", 1, foreign);
    measure("grants", 1, grants);
    measure("on_demand", GRANTS, on_demand);
    return 0;
}
