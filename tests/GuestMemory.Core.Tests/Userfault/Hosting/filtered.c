/*
 * Makes one system call under a filter: filtered CALL. Says its process id, a line, reads the filter from standard input (a length of 4 bytes, then
 * instructions of struct sock_filter), enters it, makes the call, and ends with 0 where the call succeeded, or with its error number.
 */
#define _GNU_SOURCE
#include <errno.h>
#include <fcntl.h>
#include <pthread.h>
#include <sched.h>
#include <signal.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/ioctl.h>
#include <sys/mman.h>
#include <sys/prctl.h>
#include <sys/ptrace.h>
#include <sys/resource.h>
#include <sys/socket.h>
#include <sys/syscall.h>
#include <sys/uio.h>
#include <unistd.h>

#include <linux/filter.h>
#include <linux/seccomp.h>
#include <linux/userfaultfd.h>

static void read_all(void *buffer, size_t length)
{
    for (size_t at = 0; at < length;) {
        ssize_t count = read(0, (char *)buffer + at, length - at);
        if (count <= 0) _exit(200);
        at += count;
    }
}

static void *nothing(void *argument)
{
    return argument;
}

static long other_process_memory(void)
{
    char byte, here;
    struct iovec local = { &here, 1 }, remote = { &byte, 1 };
    return syscall(SYS_process_vm_readv, getppid(), &local, 1UL, &remote, 1UL, 0UL);
}

static long own_memory(void)
{
    char byte = 1, here = 0;
    struct iovec local = { &here, 1 }, remote = { &byte, 1 };
    return syscall(SYS_process_vm_readv, getpid(), &local, 1UL, &remote, 1UL, 0UL) == 1 && here == 1 ? 0 : -1;
}

static long make(const char *call)
{
    static void *page;
    static pthread_t thread;
    if (!page) page = mmap(0, 4096, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);

#define IS(name) (strcmp(call, name) == 0)
    if (IS("write")) return write(2, "", 0);
    if (IS("thread")) return pthread_create(&thread, 0, nothing, 0) == 0 ? pthread_join(thread, 0) : -1;
    if (IS("memory")) return mmap(0, 4096, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0) == MAP_FAILED ? -1 : 0;
    if (IS("own-memory")) return own_memory();
    if (IS("own-signal")) return syscall(SYS_tgkill, getpid(), syscall(SYS_gettid), SIGURG);
    if (IS("name")) return prctl(PR_SET_NAME, "filtered");
    if (IS("fill")) return ioctl(0, UFFDIO_WAKE, page);
    if (IS("own-limit")) return syscall(SYS_prlimit64, 0, RLIMIT_AS, NULL, page);
    if (IS("own-status")) return syscall(SYS_statx, 0, "", AT_EMPTY_PATH, 0x7ffU, page);

    if (IS("open")) return open("/etc/passwd", O_RDONLY);
    if (IS("open-to-write")) return open("/dev/null", O_WRONLY);
    if (IS("create")) return open("/tmp", O_TMPFILE | O_RDWR, 0600);
    if (IS("status")) return syscall(SYS_statx, AT_FDCWD, "/etc/passwd", 0, 0x7ffU, page);
    if (IS("clone3")) return syscall(SYS_clone3, page, 64UL);
    if (IS("dumpable")) return prctl(PR_SET_DUMPABLE, 0);

    if (IS("socket")) return socket(AF_UNIX, SOCK_STREAM, 0);
    if (IS("connect")) return connect(0, page, 16);
    if (IS("bind")) return bind(0, page, 16);
    if (IS("accept")) return accept(0, 0, 0);
    if (IS("execve")) return execl("/bin/true", "true", (char *)0);
    if (IS("execveat")) return syscall(SYS_execveat, 0, "", page, page, AT_EMPTY_PATH);
    if (IS("fork")) return syscall(SYS_clone, (unsigned long)SIGCHLD, 0UL, 0UL, 0UL, 0UL);
    if (IS("vfork")) return syscall(SYS_clone, (unsigned long)(CLONE_VM | CLONE_VFORK | SIGCHLD), 0UL, 0UL, 0UL, 0UL);
    if (IS("namespace")) return syscall(SYS_clone, (unsigned long)(CLONE_NEWUSER | SIGCHLD), 0UL, 0UL, 0UL, 0UL);
    if (IS("unshare")) return unshare(CLONE_NEWNS);
    if (IS("map-to-execute")) return mmap(0, 4096, PROT_READ | PROT_EXEC, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0) == MAP_FAILED ? -1 : 0;
    if (IS("protect-to-execute")) return mprotect(page, 4096, PROT_READ | PROT_EXEC);
    if (IS("terminal")) return ioctl(0, TIOCSTI, page);
    if (IS("new-userfaultfd")) return syscall(SYS_userfaultfd, UFFD_USER_MODE_ONLY);
    if (IS("kill")) return kill(getppid(), 0);
    if (IS("other-signal")) return syscall(SYS_tgkill, getppid(), getppid(), 0);
    if (IS("pidfd-open")) return syscall(SYS_pidfd_open, getppid(), 0);
    if (IS("pidfd-stop")) return syscall(SYS_pidfd_send_signal, 0, SIGSTOP, 0UL, 0);
    if (IS("ptrace")) return ptrace(PTRACE_ATTACH, getppid(), 0, 0);
    if (IS("other-memory")) return other_process_memory();
    if (IS("process-vm-writev")) return syscall(SYS_process_vm_writev, getpid(), page, 0UL, page, 0UL, 0UL);
    if (IS("mount")) return syscall(SYS_mount, "none", "/", "tmpfs", 0UL, page);
    if (IS("chmod")) return syscall(SYS_fchmodat, AT_FDCWD, "/tmp", 01777);
    if (IS("unlink")) return syscall(SYS_unlinkat, AT_FDCWD, "/nothing", 0);
    if (IS("setuid")) return syscall(SYS_setresuid, 0, 0, 0);
    if (IS("capset")) return syscall(SYS_capset, page, page);
    if (IS("seccomp")) return syscall(SYS_seccomp, SECCOMP_SET_MODE_FILTER, 0U, page);
    if (IS("bpf")) return syscall(SYS_bpf, 0, page, 0U);
    if (IS("io-uring")) return syscall(SYS_io_uring_setup, 1U, page);
    if (IS("keyctl")) return syscall(SYS_keyctl, 0, 0, 0, 0, 0);
    if (IS("set-limit")) return syscall(SYS_prlimit64, 0, RLIMIT_CORE, (char *)page + 64, NULL);
    if (IS("limit-of-another")) return syscall(SYS_prlimit64, getppid(), RLIMIT_AS, NULL, page);
    if (IS("memfd")) return syscall(SYS_memfd_create, "x", 0U);
#ifdef __x86_64__
    if (IS("x32")) return syscall(0x40000000 | SYS_getpid);
    if (IS("32-bit")) {
        long result;
        __asm__ volatile("int $0x80" : "=a"(result) : "a"(20L) : "memory");
        return result;
    }
#endif
    _exit(201);
}

int main(int count, char **arguments)
{
    if (count != 2) return 202;
    printf("%d\n", (int)getpid());
    fflush(stdout);
    uint32_t length;
    read_all(&length, sizeof length);
    if (length % sizeof(struct sock_filter) || length > BPF_MAXINSNS * sizeof(struct sock_filter)) return 203;
    struct sock_filter *filter = malloc(length);
    read_all(filter, length);
    struct sock_fprog program = { length / sizeof(struct sock_filter), filter };
    if (prctl(PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0) || prctl(PR_SET_SECCOMP, SECCOMP_MODE_FILTER, &program)) return 204;
    long result = make(arguments[1]);
    _exit(result == -1 ? errno : 0);
}
