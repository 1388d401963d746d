/*
 * A snapshot of memory that is written while it is taken, with nothing in the way: the pages are write-protected by a userfaultfd, those that were written since are
 * protected again at the instant, and then each page is copied to a file by the fault or by a sweep, whichever comes first. As GuestMemory does it.
 *
 *     live-snapshot [--filter NAME] [--reps N] [--mib N]
 *     live-snapshot vmm SOCKET MIB    the VM of a handler that does it: hands a memfd and its userfaultfd over, and then does what lines on its input say:
 *                                     "write PERMILLE" writes so many of the pages, at random; "run" has a thread write pages without a pause, "stop" ends that and says the 99th
 *                                     percentile of a write in nanoseconds; each is answered by a line
 *
 * Prints a line of JSON a benchmark: nanoseconds, the median of the repetitions. "anon" is private memory, "memfd" a shared mapping. 5 % are
 * written after the pages were protected; these are protected again before the instant, while a thread writes, or in it ("unsettled").
 */
#define _GNU_SOURCE
#include <fcntl.h>
#include <linux/userfaultfd.h>
#include <poll.h>
#include <pthread.h>
#include <stdatomic.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/ioctl.h>
#include <sys/mman.h>
#include <sys/socket.h>
#include <sys/syscall.h>
#include <sys/un.h>
#include <time.h>
#include <unistd.h>

#define PAGE 4096ul
#define PIECE (32ul << 20)
#define SWEEP_PAGES 16ul
#define SAMPLES (1 << 20)
/* UFFD_FEATURE_WP_UNPOPULATED, WP_HUGETLBFS_SHMEM, and PAGEFAULT_FLAG_WP, which older headers lack. */
#define FEATURES (1 << 13 | 1 << 12 | 1 << 0)

static char *memory, *copies, *faulted;
static size_t size, pages;
static int uffd = -1, image = -1, ended[2];
static uint64_t *opened, *again, *captured;
static int holding;
static pthread_mutex_t serving = PTHREAD_MUTEX_INITIALIZER, capturing = PTHREAD_MUTEX_INITIALIZER;
static atomic_int running;
static uint32_t *latencies;
static size_t measured;
static uint64_t seed = 1;

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

static uint64_t next_random(uint64_t *state)
{
    *state ^= *state << 13;
    *state ^= *state >> 7;
    *state ^= *state << 17;
    return *state;
}

static void map_memory(int shared, int *file)
{
    *file = -1;
    if (shared) {
        *file = memfd_create("live-snapshot", MFD_CLOEXEC | MFD_ALLOW_SEALING);
        check(*file >= 0 && ftruncate(*file, (off_t)size) == 0 && fcntl(*file, F_ADD_SEALS, F_SEAL_SHRINK) == 0, "memfd");
    }
    memory = mmap(NULL, size, PROT_READ | PROT_WRITE, shared ? MAP_SHARED : MAP_PRIVATE | MAP_ANONYMOUS, *file, 0);
    check(memory != MAP_FAILED && (shared || madvise(memory, size, MADV_NOHUGEPAGE) == 0), "mmap");
}

static void protect(size_t first, size_t count, int on)
{
    struct uffdio_writeprotect range = { .range = { (uintptr_t)memory + first * PAGE, count * PAGE }, .mode = on ? UFFDIO_WRITEPROTECT_MODE_WP : 0 };
    check(ioctl(uffd, UFFDIO_WRITEPROTECT, &range) == 0, "UFFDIO_WRITEPROTECT");
}

static void protect_marked(const uint64_t *marks)
{
    size_t first = 0;
    while (first < pages) {
        uint64_t rest = marks[first >> 6] >> (first & 63);
        if (!rest) {
            first = (first | 63) + 1;
            continue;
        }
        first += (size_t)__builtin_ctzll(rest);
        size_t end = first + 1;
        while (end < pages && marks[end >> 6] >> (end & 63) & 1) end++;
        protect(first, end - first, 1);
        first = end;
    }
}

static void capture(size_t page)
{
    pthread_mutex_lock(&capturing);
    if (!(captured[page >> 6] >> (page & 63) & 1)) {
        memcpy(faulted, memory + page * PAGE, PAGE);
        check(pwrite(image, faulted, PAGE, (off_t)(page * PAGE)) == (ssize_t)PAGE, "pwrite");
        captured[page >> 6] |= 1ull << (page & 63);
    }
    pthread_mutex_unlock(&capturing);
}

static void *answer(void *nothing)
{
    struct uffd_msg messages[64];
    struct pollfd entries[2] = { { .fd = uffd, .events = POLLIN }, { .fd = ended[0], .events = POLLIN } };
    (void)nothing;
    while (poll(entries, 2, -1) > 0 && !entries[1].revents) {
        pthread_mutex_lock(&serving);
        ssize_t length = read(uffd, messages, sizeof messages);
        for (ssize_t i = 0; i < length / (ssize_t)sizeof *messages; i++) {
            size_t page = (messages[i].arg.pagefault.address - (uintptr_t)memory) / PAGE;
            if (holding) capture(page);
            else opened[page >> 6] |= 1ull << (page & 63);
            protect(page, 1, 0);
        }
        pthread_mutex_unlock(&serving);
    }
    return NULL;
}

static void sweep(void)
{
    for (size_t first = 0; first < pages; first += SWEEP_PAGES) {
        uint64_t taken = 0;
        pthread_mutex_lock(&capturing);
        for (size_t i = 0; i < SWEEP_PAGES; i++) {
            size_t page = first + i;
            if (captured[page >> 6] >> (page & 63) & 1) continue;
            memcpy(copies + i * PAGE, memory + page * PAGE, PAGE);
            captured[page >> 6] |= 1ull << (page & 63);
            taken |= 1ull << i;
        }
        pthread_mutex_unlock(&capturing);
        for (size_t i = 0; i < SWEEP_PAGES; i++) {
            size_t from = i;
            while (i < SWEEP_PAGES && taken >> i & 1) i++;
            if (i > from) check(pwrite(image, copies + from * PAGE, (i - from) * PAGE, (off_t)((first + from) * PAGE)) == (ssize_t)((i - from) * PAGE), "pwrite");
        }
    }
}

/* Different pages, in the order of a walk that skips at random. */
static void write_some(size_t permille)
{
    for (size_t page = 0; page < pages; page++) {
        if (next_random(&seed) % 1000 < permille) *(volatile uint64_t *)(memory + page * PAGE + 8) = seed;
    }
}

static void *write_always(void *nothing)
{
    uint64_t state = 88172645463325252ull;
    (void)nothing;
    measured = 0;
    while (atomic_load(&running)) {
        volatile uint64_t *word = (volatile uint64_t *)(memory + next_random(&state) % pages * PAGE);
        double start = now();
        *word = state;
        double time = now() - start;
        if (measured < SAMPLES) latencies[measured++] = time > 4e9 ? 4000000000u : (uint32_t)time;
        usleep(20);
    }
    return NULL;
}

static int compare_u32(const void *left, const void *right)
{
    uint32_t a = *(const uint32_t *)left, b = *(const uint32_t *)right;
    return (a > b) - (a < b);
}

static double p99(void)
{
    if (measured == 0) return 0;
    qsort(latencies, measured, sizeof *latencies, compare_u32);
    return latencies[measured * 99 / 100];
}

static void open_userfaultfd(uint64_t features, uint64_t mode)
{
    uffd = (int)syscall(SYS_userfaultfd, O_CLOEXEC | O_NONBLOCK);
    struct uffdio_api api = { .api = UFFD_API, .features = features };
    struct uffdio_register range = { .range = { (uintptr_t)memory, size }, .mode = mode };
    check(uffd >= 0 && ioctl(uffd, UFFDIO_API, &api) == 0 && ioctl(uffd, UFFDIO_REGISTER, &range) == 0, "userfaultfd");
}

static int compare(const void *left, const void *right)
{
    double a = *(const double *)left, b = *(const double *)right;
    return (a > b) - (a < b);
}

static void print(const char *kind, const char *name, double *times, int count)
{
    qsort(times, (size_t)count, sizeof *times, compare);
    printf("{\"bench\":\"%s_%s\",\"ns_op\":%.1f}\n", kind, name, times[count / 2]);
}

/* Until few are left, while the writers run. */
static void protect_again(void)
{
    for (int round = 0; round < 8; round++) {
        size_t count = 0;
        for (size_t i = 0; i <= pages / 64; i++) count += (size_t)__builtin_popcountll(opened[i]);
        if (count <= 256) return;
        pthread_mutex_lock(&serving);
        for (size_t i = 0; i <= pages / 64; i++) {
            again[i] = opened[i];
            opened[i] = 0;
        }
        pthread_mutex_unlock(&serving);
        protect_marked(again);
    }
}

static void measure(const char *kind, int shared, int settles, int repetitions)
{
    double at_once[64], pause[64], late[64], all[64];
    int file;
    map_memory(shared, &file);
    memset(memory, 1, size);
    image = open("/dev/shm", O_TMPFILE | O_RDWR | O_CLOEXEC, 0600);
    check(image >= 0, "/dev/shm");
    for (int i = -1; i < repetitions; i++) {
        pthread_t answering, writing;
        holding = 0;
        memset(opened, 0, pages / 8 + 8);
        memset(captured, 0, pages / 8 + 8);
        check(ftruncate(image, 0) == 0 && ftruncate(image, (off_t)size) == 0 && pipe(ended) == 0, "image");
        open_userfaultfd(FEATURES, UFFDIO_REGISTER_MODE_WP);
        check(pthread_create(&answering, NULL, answer, NULL) == 0, "pthread_create");
        double start = now();
        protect(0, pages, 1);
        if (i >= 0) at_once[i] = now() - start;
        write_some(50);
        atomic_store(&running, 1);
        check(pthread_create(&writing, NULL, write_always, NULL) == 0, "pthread_create");
        if (settles) protect_again();

        /* The instant: no fault is answered. */
        start = now();
        pthread_mutex_lock(&serving);
        protect_marked(opened);
        holding = 1;
        pthread_mutex_unlock(&serving);
        if (i >= 0) pause[i] = now() - start;

        start = now();
        sweep();
        if (i >= 0) all[i] = now() - start;
        atomic_store(&running, 0);
        pthread_join(writing, NULL);
        if (i >= 0) late[i] = p99();
        check(write(ended[1], "", 1) == 1, "pipe");
        pthread_join(answering, NULL);
        close(uffd);
        close(ended[0]);
        close(ended[1]);
    }
    print(kind, "at_once", at_once, repetitions);
    print(kind, "pause", pause, repetitions);
    print(kind, "sweep", all, repetitions);
    print(kind, "writer_p99", late, repetitions);
    munmap(memory, size);
    close(image);
    if (file >= 0) close(file);
}

static void hand_over(const char *path, int memfd)
{
    struct sockaddr_un address = { .sun_family = AF_UNIX };
    strncpy(address.sun_path, path, sizeof address.sun_path - 1);
    int s = socket(AF_UNIX, SOCK_STREAM | SOCK_CLOEXEC, 0);
    check(s >= 0 && connect(s, (void *)&address, sizeof address) == 0, path);
    char json[256];
    int length = snprintf(json, sizeof json, "[{\"base_host_virt_addr\":%llu,\"size\":%zu,\"offset\":0,\"page_size\":4096,\"page_size_kib\":4096}]", (unsigned long long)(uintptr_t)memory, size);
    int descriptors[2] = { uffd, memfd };
    union { char bytes[CMSG_SPACE(sizeof descriptors)]; struct cmsghdr header; } control = { .header = { .cmsg_len = CMSG_LEN(sizeof descriptors), .cmsg_level = SOL_SOCKET, .cmsg_type = SCM_RIGHTS } };
    memcpy(CMSG_DATA(&control.header), descriptors, sizeof descriptors);
    struct iovec vector = { json, (size_t)length };
    struct msghdr message = { .msg_iov = &vector, .msg_iovlen = 1, .msg_control = control.bytes, .msg_controllen = sizeof control.bytes };
    check(sendmsg(s, &message, MSG_NOSIGNAL) == length, "sendmsg");
}

static int serve_as_vmm(const char *path)
{
    int memfd;
    pthread_t writing = 0;
    char line[64];
    map_memory(1, &memfd);
    open_userfaultfd(UFFD_FEATURE_EVENT_REMOVE | UFFD_FEATURE_MISSING_SHMEM, UFFDIO_REGISTER_MODE_MISSING);
    hand_over(path, memfd);
    while (fgets(line, sizeof line, stdin)) {
        double result = 0;
        if (!strncmp(line, "write ", 6)) write_some(strtoul(line + 6, NULL, 10));
        if (!strcmp(line, "run\n")) {
            atomic_store(&running, 1);
            check(pthread_create(&writing, NULL, write_always, NULL) == 0, "pthread_create");
        }
        if (!strcmp(line, "stop\n")) {
            atomic_store(&running, 0);
            pthread_join(writing, NULL);
            result = p99();
        }
        printf("%.0f\n", result);
        fflush(stdout);
    }
    return 0;
}

int main(int count, char **arguments)
{
    const char *filter = "";
    int repetitions = 5;
    size = 1024ul << 20;
    latencies = malloc(SAMPLES * sizeof *latencies);
    if (count == 4 && !strcmp(arguments[1], "vmm")) {
        size = strtoul(arguments[3], NULL, 10) << 20;
        pages = size / PAGE;
        return serve_as_vmm(arguments[2]);
    }
    for (int i = 1; i + 1 < count; i += 2) {
        if (!strcmp(arguments[i], "--filter")) filter = arguments[i + 1];
        if (!strcmp(arguments[i], "--reps")) repetitions = atoi(arguments[i + 1]);
        if (!strcmp(arguments[i], "--mib")) size = strtoul(arguments[i + 1], NULL, 10) << 20;
    }
    check(repetitions > 0 && repetitions <= 64 && size > 0, "--reps, --mib");
    pages = size / PAGE;
    opened = calloc(pages / 64 + 1, 8);
    again = calloc(pages / 64 + 1, 8);
    captured = calloc(pages / 64 + 1, 8);
    copies = malloc(SWEEP_PAGES * PAGE);
    faulted = malloc(PAGE);
    if (strstr("anon", filter)) {
        measure("anon", 0, 1, repetitions);
        measure("anon_unsettled", 0, 0, repetitions);
    }
    if (strstr("memfd", filter)) {
        measure("memfd", 1, 1, repetitions);
        measure("memfd_unsettled", 1, 0, repetitions);
    }
    return 0;
}
