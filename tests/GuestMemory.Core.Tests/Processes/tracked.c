/*
 * A process whose memory is tracked, and which knows nothing of it: tracked KIND PAGES [PATH|-] [OPTION...]. It prints "ADDRESS SIZE PAGESIZE" and
 * does what the lines of its input say, each answered by one line.
 *
 *   w PAGE...      writes the pages          r PAGE...      reads them
 *   o PAGE...      writes them with what they have
 *   d FIRST COUNT  gives pages back          u FIRST COUNT  unmaps them         m FIRST COUNT  maps new memory there
 *   s SEED COUNT   writes each page once, in random order, by so many threads
 *   b KIND         waits in a system call until the next line (or, for sleeps, for a second); answers "waiting", then "RESULT ERRNO"
 *   c              how many real-time signals came
 *   x              becomes another program
 *
 * tracked trace PID traces another process until its input ends.
 */
#define _GNU_SOURCE
#include <errno.h>
#include <fcntl.h>
#include <linux/audit.h>
#include <linux/filter.h>
#include <linux/futex.h>
#include <linux/seccomp.h>
#include <poll.h>
#include <pthread.h>
#include <signal.h>
#include <stdatomic.h>
#include <stddef.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/epoll.h>
#include <sys/ipc.h>
#include <sys/mman.h>
#include <sys/msg.h>
#include <sys/prctl.h>
#include <sys/ptrace.h>
#include <sys/select.h>
#include <sys/sem.h>
#include <sys/socket.h>
#include <sys/syscall.h>
#include <sys/un.h>
#include <sys/wait.h>
#include <time.h>
#include <unistd.h>

static char *memory;
static size_t page_size = 4096, page_count;
static atomic_int signals_seen, word;
static atomic_uint written;
static pthread_t main_thread;
static int pipe_ends[2], semaphore, queue, listener;
static struct sockaddr_un name = { .sun_family = AF_UNIX };

static void fail(const char *what)
{
    perror(what);
    exit(1);
}

static void count_signal(int signal)
{
    (void)signal;
    signals_seen++;
}

static void nothing(int signal)
{
    (void)signal;
}

static void write_page(size_t page)
{
    /* Another byte each time; the page is all that counts. */
    unsigned value = ++written;
    *(volatile unsigned *)(memory + page * page_size + value * 64 % page_size) = value;
}

static void map_memory(const char *kind, const char *path)
{
    int protection = PROT_READ | PROT_WRITE, flags = MAP_PRIVATE | MAP_ANONYMOUS, file = -1;
    if (!strncmp(kind, "huge", 4)) page_size = 2 << 20;
    if (!strcmp(kind, "huge")) flags |= MAP_HUGETLB | 21 << MAP_HUGE_SHIFT;
    if (!strcmp(kind, "memfd") || !strcmp(kind, "hugememfd")) {
        file = memfd_create("tracked", page_size > 4096 ? MFD_HUGETLB | 21 << MAP_HUGE_SHIFT : 0);
        if (file < 0 || ftruncate(file, page_count * page_size)) fail("memfd");
        flags = MAP_SHARED;
    }
    if (!strcmp(kind, "file") || !strcmp(kind, "readonly")) {
        file = open(path, !strcmp(kind, "file") ? O_RDWR | O_CREAT : O_RDONLY | O_CREAT, 0600);
        if (file < 0 || (!strcmp(kind, "file") && ftruncate(file, page_count * page_size))) fail(path);
        flags = MAP_SHARED;
        if (!strcmp(kind, "readonly")) protection = PROT_READ;
    }
    size_t size = page_count * page_size, align = 2 << 20;
    if (!strcmp(kind, "thp")) {
        char *place = mmap(NULL, size + align, PROT_NONE, MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0);
        memory = (char *)(((size_t)place + align - 1) & ~(align - 1));
        flags |= MAP_FIXED;
    }
    memory = mmap(memory, size, protection, flags, file, 0);
    if (memory == MAP_FAILED) fail("mmap");
    if (!strcmp(kind, "thp")) {
        if (madvise(memory, size, MADV_HUGEPAGE)) fail("madvise");
        for (size_t page = 0; page < page_count; page++) write_page(page);
    }
}

static void filter_calls(unsigned action)
{
    struct sock_filter filter[] = {
        BPF_STMT(BPF_LD | BPF_W | BPF_ABS, offsetof(struct seccomp_data, nr)),
        BPF_JUMP(BPF_JMP | BPF_JEQ | BPF_K, __NR_userfaultfd, 0, 1),
        BPF_STMT(BPF_RET | BPF_K, action),
        BPF_STMT(BPF_RET | BPF_K, SECCOMP_RET_ALLOW),
    };
    struct sock_fprog program = { sizeof filter / sizeof *filter, filter };
    if (prctl(PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0) || prctl(PR_SET_SECCOMP, SECCOMP_MODE_FILTER, &program)) fail("seccomp");
}

struct part {
    size_t *order, first, step;
};

static void *write_part(void *argument)
{
    struct part *part = argument;
    for (size_t i = part->first; i < page_count; i += part->step) write_page(part->order[i]);
    return NULL;
}

static void storm(unsigned seed, size_t threads)
{
    size_t *order = malloc(page_count * sizeof *order);
    for (size_t i = 0; i < page_count; i++) {
        seed = seed * 1664525 + 1013904223;
        size_t other = seed % (i + 1);
        order[i] = order[other];
        order[other] = i;
    }
    pthread_t ids[threads];
    struct part parts[threads];
    for (size_t i = 0; i < threads; i++) {
        parts[i] = (struct part){ order, i, threads };
        if (pthread_create(&ids[i], NULL, write_part, &parts[i])) fail("thread");
    }
    for (size_t i = 0; i < threads; i++) pthread_join(ids[i], NULL);
    free(order);
}

static void *release(void *kind)
{
    char line[16];
    size_t length = 0;
    while (length < sizeof line && read(0, line + length, 1) == 1 && line[length] != '\n') length++;
    word = 1;
    if (!strncmp(kind, "futex", 5)) syscall(SYS_futex, &word, FUTEX_WAKE, 1, NULL, NULL, 0);
    else if (!strcmp(kind, "sigtimedwait")) pthread_kill(main_thread, SIGUSR2);
    else if (!strcmp(kind, "pause") || !strcmp(kind, "sigsuspend") || !strcmp(kind, "epollhandler")) pthread_kill(main_thread, SIGUSR1);
    else if (!strcmp(kind, "semop") || !strcmp(kind, "semtimedop")) semop(semaphore, &(struct sembuf){ 0, 1, 0 }, 1);
    else if (!strcmp(kind, "msgrcv")) msgsnd(queue, &(struct { long type; char text; }){ 1, 'x' }, 1, 0);
    else if (!strcmp(kind, "accept")) connect(socket(AF_UNIX, SOCK_STREAM, 0), (struct sockaddr *)&name, sizeof name);
    else (void)!write(pipe_ends[1], "x", 1);
    return NULL;
}

/* Many values live in registers; a register that changed shows. */
static unsigned long churn(void)
{
    unsigned long a = 1, b = 2, c = 3, d = 5, e = 7, f = 11, g = 13, h = 17;
    double x = 1.5, y = 2.5;
    for (int i = 0; i < 2000; i++) {
        a += b * 3; b ^= c << 7; c += d; d = d * 31 + e; e ^= f >> 3; f += g * 7; g ^= h; h += a;
        x = x * 1.0000001 + y; y = y * 0.9999999 + (double)(a & 7);
    }
    return a ^ b ^ c ^ d ^ e ^ f ^ g ^ h ^ (unsigned long)x ^ (unsigned long)y;
}

static long wait_in(const char *kind)
{
    struct timespec long_time = { 1000, 0 }, second = { 1, 0 };
    struct pollfd entry = { pipe_ends[0], POLLIN, 0 };
    sigset_t set;
    sigemptyset(&set);
    char byte;
    if (!strcmp(kind, "read")) return read(pipe_ends[0], &byte, 1);
    if (!strcmp(kind, "nanosleep")) return syscall(SYS_clock_nanosleep, CLOCK_MONOTONIC, 0, &second, NULL);
    if (!strcmp(kind, "futex")) return syscall(SYS_futex, &word, FUTEX_WAIT, 0, NULL, NULL, 0);
    if (!strcmp(kind, "futextimed")) return syscall(SYS_futex, &word, FUTEX_WAIT, 0, &long_time, NULL, 0);
    if (!strcmp(kind, "poll")) return poll(&entry, 1, -1);
    if (!strcmp(kind, "polltimed")) return poll(&entry, 1, 1000000);
    if (!strcmp(kind, "ppoll")) return ppoll(&entry, 1, NULL, &set);
    if (!strcmp(kind, "select")) {
        fd_set descriptors;
        FD_ZERO(&descriptors);
        FD_SET(pipe_ends[0], &descriptors);
        return select(pipe_ends[0] + 1, &descriptors, NULL, NULL, NULL);
    }
    if (!strncmp(kind, "epoll", 5)) {
        struct epoll_event event = { .events = EPOLLIN };
        int epoll = epoll_create1(0);
        if (epoll < 0 || epoll_ctl(epoll, EPOLL_CTL_ADD, pipe_ends[0], &event)) fail("epoll");
        if (!strcmp(kind, "epollpwait")) return epoll_pwait(epoll, &event, 1, -1, &set);
        return epoll_wait(epoll, &event, 1, strcmp(kind, "epolltimed") ? -1 : 1000000);
    }
    if (!strcmp(kind, "sigtimedwait")) {
        sigaddset(&set, SIGUSR2);
        return sigtimedwait(&set, NULL, &long_time);
    }
    if (!strcmp(kind, "pause")) return pause();
    if (!strcmp(kind, "sigsuspend")) return sigsuspend(&set);
    if (!strcmp(kind, "semop")) return semop(semaphore, &(struct sembuf){ 0, -1, 0 }, 1);
    if (!strcmp(kind, "semtimedop")) return semtimedop(semaphore, &(struct sembuf){ 0, -1, 0 }, 1, &long_time);
    if (!strcmp(kind, "msgrcv")) return msgrcv(queue, &(struct { long type; char text; }){ 0, 0 }, 1, 0, 0);
    if (!strcmp(kind, "accept")) return accept(listener, NULL, NULL) < 0 ? -1 : 0;
    if (!strcmp(kind, "wait")) {
        pid_t child = fork();
        if (!child) _exit(read(pipe_ends[0], &byte, 1) == 1 ? 7 : 1);
        int status = 0;
        return waitpid(child, &status, 0) == child && WEXITSTATUS(status) == 7 ? 0 : -1;
    }
    if (!strcmp(kind, "spin")) {
        unsigned long expected = churn();
        struct pollfd input = { 0, POLLIN, 0 };
        while (!poll(&input, 1, 0)) if (churn() != expected) return -1;
        while (read(0, &byte, 1) == 1 && byte != '\n') continue;
        return 0;
    }
    errno = ENOSYS;
    return -1;
}

static void block(const char *kind)
{
    pthread_t helper;
    /* They need no other thread. */
    int is_sleep = !strcmp(kind, "nanosleep"), is_alone = is_sleep || !strcmp(kind, "spin");
    struct timespec before, after;
    word = 0;
    semaphore = semget(IPC_PRIVATE, 1, 0600);
    queue = msgget(IPC_PRIVATE, 0600);
    if (semaphore < 0 || queue < 0 || pipe(pipe_ends)) fail("resources");
    listener = socket(AF_UNIX, SOCK_STREAM, 0);
    snprintf(name.sun_path + 1, sizeof name.sun_path - 1, "tracked-%d", getpid());
    if (bind(listener, (struct sockaddr *)&name, sizeof name) || listen(listener, 1)) fail("listen");
    if (!is_alone && pthread_create(&helper, NULL, release, (void *)kind)) fail("thread");
    puts("waiting");
    clock_gettime(CLOCK_MONOTONIC, &before);
    errno = 0;
    long result = wait_in(kind);
    int error = result < 0 ? errno : 0;
    clock_gettime(CLOCK_MONOTONIC, &after);
    if (is_sleep && (after.tv_sec - before.tv_sec) * 1000000000L + after.tv_nsec - before.tv_nsec < 1000000000L) result = -2;
    if (!is_alone) pthread_join(helper, NULL);
    semctl(semaphore, 0, IPC_RMID);
    msgctl(queue, IPC_RMID, NULL);
    close(listener);
    printf("%ld %d\n", result, error);
}

static void obey(char *line)
{
    char *rest;
    char *command = strtok_r(line, " \n", &rest);
    size_t numbers[2] = { 0 };
    if (!command) return;
    if (*command == 'b') {
        block(strtok_r(NULL, " \n", &rest));
        return;
    }
    char *word_text;
    for (size_t i = 0; (word_text = strtok_r(NULL, " \n", &rest)); i++) {
        size_t number = strtoul(word_text, NULL, 10);
        if (i < 2) numbers[i] = number;
        if (*command == 'w') write_page(number);
        if (*command == 'o') *(volatile char *)(memory + number * page_size) = *(volatile char *)(memory + number * page_size);
        if (*command == 'r') (void)*(volatile char *)(memory + number * page_size);
    }
    char *start = memory + numbers[0] * page_size;
    size_t size = numbers[1] * page_size;
    if (*command == 's') storm((unsigned)numbers[0], numbers[1]);
    if (*command == 'd' && madvise(start, size, MADV_DONTNEED)) fail("madvise");
    if (*command == 'u' && munmap(start, size)) fail("munmap");
    if (*command == 'm' && mmap(start, size, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS | MAP_FIXED, -1, 0) != start) fail("mmap");
    if (*command == 'x') {
        puts("ok");
        execl("/bin/cat", "cat", NULL);
        fail("execl");
    }
    if (*command == 'c') printf("%d\n", signals_seen);
    else puts("ok");
}

int main(int argc, char **argv)
{
    static char line[1 << 20];
    if (argc < 3) return 2;
    setvbuf(stdout, NULL, _IONBF, 0);
    setvbuf(stdin, NULL, _IONBF, 0);
    if (!strcmp(argv[1], "trace")) {
        if (ptrace(PTRACE_SEIZE, atoi(argv[2]), 0, 0)) fail("ptrace");
        puts("tracing");
        return read(0, line, 1) != 0;
    }
    main_thread = pthread_self();
    page_count = strtoul(argv[2], NULL, 10);
    map_memory(argv[1], argc > 3 ? argv[3] : "");
    struct sigaction action = { .sa_handler = count_signal, .sa_flags = SA_RESTART };
    sigaction(SIGRTMIN, &action, NULL);
    action = (struct sigaction){ .sa_handler = nothing };
    sigaction(SIGUSR1, &action, NULL);
    sigset_t set;
    sigemptyset(&set);
    sigaddset(&set, SIGUSR2);
    pthread_sigmask(SIG_BLOCK, &set, NULL);
    for (int i = 4; i < argc; i++) {
        if (!strcmp(argv[i], "nobody") && (setgid(65534) || setuid(65534))) fail("setuid");
        if (!strcmp(argv[i], "kill")) filter_calls(SECCOMP_RET_KILL_PROCESS);
        if (!strcmp(argv[i], "refuse")) filter_calls(SECCOMP_RET_ERRNO | EPERM);
    }
    printf("%zu %zu %zu\n", (size_t)memory, page_count * page_size, page_size);
    while (fgets(line, sizeof line, stdin)) obey(line);
    return 0;
}
