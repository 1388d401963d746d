/*
 * Prints what the C headers of this machine say about every constant and structure that GuestMemory declares again in C#:
 * one "name value" a line. Constants and error numbers stand under their C name, in hexadecimal, negative ones extended to
 * 64 bits; sizes as sizeof.STRUCT and offsets as offsetof.STRUCT.MEMBER, in decimal.
 *
 * What the headers are too old to know is left out: a name that is not printed was not checked.
 */
#define _GNU_SOURCE
#include <elf.h>
#include <errno.h>
#include <fcntl.h>
#include <poll.h>
#include <grp.h>
#include <pwd.h>
#include <sched.h>
#include <signal.h>
#include <spawn.h>
#include <stddef.h>
#include <stdio.h>
#include <sys/epoll.h>
#include <sys/eventfd.h>
#include <sys/mman.h>
#include <sys/prctl.h>
#include <sys/ptrace.h>
#ifdef __x86_64__
#include <sys/reg.h>
#endif
#include <sys/resource.h>
#include <sys/socket.h>
#include <sys/stat.h>
#include <sys/syscall.h>
#include <sys/time.h>
#include <sys/types.h>
#include <sys/uio.h>
#include <sys/un.h>
#include <sys/vfs.h>
#include <sys/wait.h>
#include <unistd.h>

#include <linux/audit.h>
#include <linux/capability.h>
#include <linux/falloc.h>
#include <linux/filter.h>
#include <linux/fs.h>
#include <linux/futex.h>
#include <linux/io_uring.h>
#if __has_include(<linux/ioprio.h>)
#include <linux/ioprio.h>
#endif
#include <linux/kvm.h>
#include <linux/magic.h>
#include <linux/mman.h>
#include <linux/prctl.h>
#include <linux/seccomp.h>
#include <linux/sockios.h>
#include <linux/userfaultfd.h>
#include <linux/vhost_types.h>
#include <linux/virtio_blk.h>
/* Installed without the one that it needs, which stands beside this file: xen/interface/xen.h. */
#include <xen/privcmd.h>
#include <xen/gntdev.h>
/* Of libxen-dev, and for toolstacks alone. */
#if __has_include(<xenctrl.h>)
#include <xenctrl.h>
#endif

#define CONSTANT(name) printf("%s 0x%llx\n", #name, (unsigned long long)(name))
#define CALL(name) printf("call.%s %d\n", #name, __NR_##name)
#define SIZE(type, name) printf("sizeof.%s %zu\n", #name, sizeof(type))
#define OFFSET(type, name, member) printf("offsetof.%s.%s %zu\n", #name, #member, offsetof(type, member))
#define STRUCT_SIZE(name) SIZE(struct name, name)
#define STRUCT_OFFSET(name, member) OFFSET(struct name, name, member)

static void waiting_for_many(void)
{
    CONSTANT(EPOLL_CLOEXEC);
    CONSTANT(EPOLL_CTL_ADD);
    CONSTANT(EPOLL_CTL_DEL);
    CONSTANT(EPOLLIN);
    CONSTANT(EPOLLRDHUP);
    STRUCT_SIZE(epoll_event);
    STRUCT_OFFSET(epoll_event, events);
    STRUCT_OFFSET(epoll_event, data);
}

static void memory_mapping(void)
{
    CONSTANT(PROT_NONE);
    CONSTANT(PROT_READ);
    CONSTANT(PROT_WRITE);
    CONSTANT(PROT_EXEC);

    CONSTANT(MAP_SHARED);
    CONSTANT(MAP_PRIVATE);
    CONSTANT(MAP_SHARED_VALIDATE);
    CONSTANT(MAP_TYPE);
    CONSTANT(MAP_FIXED);
    CONSTANT(MAP_FIXED_NOREPLACE);
    CONSTANT(MAP_ANONYMOUS);
    CONSTANT(MAP_GROWSDOWN);
    CONSTANT(MAP_DENYWRITE);
    CONSTANT(MAP_EXECUTABLE);
    CONSTANT(MAP_LOCKED);
    CONSTANT(MAP_NORESERVE);
    CONSTANT(MAP_POPULATE);
    CONSTANT(MAP_NONBLOCK);
    CONSTANT(MAP_STACK);
    CONSTANT(MAP_HUGETLB);
    CONSTANT(MAP_SYNC);
    CONSTANT(MAP_HUGE_SHIFT);
    CONSTANT(MAP_HUGE_MASK);
    CONSTANT(MAP_HUGE_64KB);
    CONSTANT(MAP_HUGE_2MB);
    CONSTANT(MAP_HUGE_1GB);

    CONSTANT(MADV_NORMAL);
    CONSTANT(MADV_RANDOM);
    CONSTANT(MADV_SEQUENTIAL);
    CONSTANT(MADV_WILLNEED);
    CONSTANT(MADV_DONTNEED);
    CONSTANT(MADV_FREE);
    CONSTANT(MADV_REMOVE);
    CONSTANT(MREMAP_MAYMOVE);
    CONSTANT(MREMAP_FIXED);
    CONSTANT(MADV_DONTFORK);
    CONSTANT(MADV_DOFORK);
    CONSTANT(MADV_MERGEABLE);
    CONSTANT(MADV_HUGEPAGE);
    CONSTANT(MADV_NOHUGEPAGE);
    CONSTANT(MADV_DONTDUMP);
    CONSTANT(MADV_DODUMP);
#ifdef MADV_COLD
    CONSTANT(MADV_COLD);
    CONSTANT(MADV_PAGEOUT);
#endif
#ifdef MADV_POPULATE_READ
    CONSTANT(MADV_POPULATE_READ);
    CONSTANT(MADV_POPULATE_WRITE);
#endif
#ifdef MADV_COLLAPSE
    CONSTANT(MADV_COLLAPSE);
#endif

    CONSTANT(MS_SYNC);

    CONSTANT(MFD_CLOEXEC);
    CONSTANT(MFD_ALLOW_SEALING);
    CONSTANT(MFD_HUGETLB);
    CONSTANT(F_ADD_SEALS);
    CONSTANT(F_GET_SEALS);
    CONSTANT(F_SEAL_SEAL);
    CONSTANT(F_SEAL_SHRINK);
    CONSTANT(F_SEAL_GROW);
    CONSTANT(F_SEAL_WRITE);
}

static void userfault(void)
{
    CONSTANT(__NR_userfaultfd);
#ifdef UFFD_USER_MODE_ONLY
    CONSTANT(UFFD_USER_MODE_ONLY);
#endif
#ifdef USERFAULTFD_IOC_NEW
    CONSTANT(USERFAULTFD_IOC_NEW);
#endif
    CONSTANT(UFFD_API);

    CONSTANT(UFFDIO_API);
    CONSTANT(UFFDIO_REGISTER);
    CONSTANT(UFFDIO_UNREGISTER);
    CONSTANT(UFFDIO_UNREGISTER);
    CONSTANT(UFFDIO_WAKE);
    CONSTANT(UFFDIO_COPY);
    CONSTANT(UFFDIO_ZEROPAGE);

    /* The bit numbers that uffdio_api.ioctls and uffdio_register.ioctls report. */
    CONSTANT(_UFFDIO_REGISTER);
    CONSTANT(_UFFDIO_UNREGISTER);
    CONSTANT(_UFFDIO_WAKE);
    CONSTANT(_UFFDIO_COPY);
    CONSTANT(_UFFDIO_ZEROPAGE);
    CONSTANT(_UFFDIO_API);

    CONSTANT(UFFDIO_REGISTER_MODE_MISSING);
    CONSTANT(UFFDIO_REGISTER_MODE_WP);
    CONSTANT(UFFDIO_COPY_MODE_DONTWAKE);
    CONSTANT(UFFDIO_ZEROPAGE_MODE_DONTWAKE);

    CONSTANT(UFFD_EVENT_PAGEFAULT);
    CONSTANT(UFFD_EVENT_FORK);
    CONSTANT(UFFD_EVENT_REMAP);
    CONSTANT(UFFD_EVENT_REMOVE);
    CONSTANT(UFFD_EVENT_UNMAP);
    CONSTANT(UFFD_PAGEFAULT_FLAG_WRITE);
    CONSTANT(UFFD_PAGEFAULT_FLAG_WP);

    CONSTANT(UFFD_FEATURE_PAGEFAULT_FLAG_WP);
    CONSTANT(UFFD_FEATURE_EVENT_FORK);
    CONSTANT(UFFD_FEATURE_EVENT_REMAP);
    CONSTANT(UFFD_FEATURE_EVENT_REMOVE);
    CONSTANT(UFFD_FEATURE_MISSING_HUGETLBFS);
    CONSTANT(UFFD_FEATURE_MISSING_SHMEM);
    CONSTANT(UFFD_FEATURE_EVENT_UNMAP);
    CONSTANT(UFFD_FEATURE_SIGBUS);
    CONSTANT(UFFD_FEATURE_THREAD_ID);

    STRUCT_SIZE(uffdio_api);
    STRUCT_OFFSET(uffdio_api, api);
    STRUCT_OFFSET(uffdio_api, features);
    STRUCT_OFFSET(uffdio_api, ioctls);
    STRUCT_SIZE(uffdio_range);
    STRUCT_OFFSET(uffdio_range, start);
    STRUCT_OFFSET(uffdio_range, len);
    STRUCT_SIZE(uffdio_register);
    STRUCT_OFFSET(uffdio_register, range);
    STRUCT_OFFSET(uffdio_register, mode);
    STRUCT_OFFSET(uffdio_register, ioctls);
    STRUCT_SIZE(uffdio_copy);
    STRUCT_OFFSET(uffdio_copy, dst);
    STRUCT_OFFSET(uffdio_copy, src);
    STRUCT_OFFSET(uffdio_copy, len);
    STRUCT_OFFSET(uffdio_copy, mode);
    STRUCT_OFFSET(uffdio_copy, copy);
    STRUCT_SIZE(uffdio_zeropage);
    STRUCT_OFFSET(uffdio_zeropage, range);
    STRUCT_OFFSET(uffdio_zeropage, mode);
    STRUCT_OFFSET(uffdio_zeropage, zeropage);

    STRUCT_SIZE(uffd_msg);
    STRUCT_OFFSET(uffd_msg, event);
    STRUCT_OFFSET(uffd_msg, arg);
    STRUCT_OFFSET(uffd_msg, arg.pagefault.flags);
    STRUCT_OFFSET(uffd_msg, arg.pagefault.address);
    STRUCT_OFFSET(uffd_msg, arg.pagefault.feat.ptid);
    STRUCT_OFFSET(uffd_msg, arg.fork.ufd);
    STRUCT_OFFSET(uffd_msg, arg.remap.from);
    STRUCT_OFFSET(uffd_msg, arg.remap.to);
    STRUCT_OFFSET(uffd_msg, arg.remap.len);
    STRUCT_OFFSET(uffd_msg, arg.remove.start);
    STRUCT_OFFSET(uffd_msg, arg.remove.end);

#ifdef UFFDIO_WRITEPROTECT /* Linux 5.7 */
    CONSTANT(UFFDIO_WRITEPROTECT);
    CONSTANT(_UFFDIO_WRITEPROTECT);
    CONSTANT(UFFDIO_WRITEPROTECT_MODE_WP);
    CONSTANT(UFFDIO_WRITEPROTECT_MODE_DONTWAKE);
    CONSTANT(UFFDIO_COPY_MODE_WP);
    STRUCT_SIZE(uffdio_writeprotect);
    STRUCT_OFFSET(uffdio_writeprotect, range);
    STRUCT_OFFSET(uffdio_writeprotect, mode);
#endif
#ifdef UFFDIO_CONTINUE /* Linux 5.13 */
    CONSTANT(UFFDIO_CONTINUE);
    CONSTANT(_UFFDIO_CONTINUE);
    CONSTANT(UFFDIO_CONTINUE_MODE_DONTWAKE);
    CONSTANT(UFFDIO_REGISTER_MODE_MINOR);
    CONSTANT(UFFD_PAGEFAULT_FLAG_MINOR);
    CONSTANT(UFFD_FEATURE_MINOR_HUGETLBFS);
    STRUCT_SIZE(uffdio_continue);
    STRUCT_OFFSET(uffdio_continue, range);
    STRUCT_OFFSET(uffdio_continue, mode);
    STRUCT_OFFSET(uffdio_continue, mapped);
#endif
#ifdef UFFDIO_CONTINUE_MODE_WP
    CONSTANT(UFFDIO_CONTINUE_MODE_WP);
#endif
#ifdef UFFD_FEATURE_MINOR_SHMEM
    CONSTANT(UFFD_FEATURE_MINOR_SHMEM);
#endif
#ifdef UFFD_FEATURE_EXACT_ADDRESS
    CONSTANT(UFFD_FEATURE_EXACT_ADDRESS);
#endif
#ifdef UFFD_FEATURE_WP_HUGETLBFS_SHMEM
    CONSTANT(UFFD_FEATURE_WP_HUGETLBFS_SHMEM);
#endif
#ifdef UFFD_FEATURE_WP_UNPOPULATED
    CONSTANT(UFFD_FEATURE_WP_UNPOPULATED);
#endif
#ifdef UFFD_FEATURE_POISON
    CONSTANT(UFFD_FEATURE_POISON);
#endif
#ifdef UFFD_FEATURE_WP_ASYNC
    CONSTANT(UFFD_FEATURE_WP_ASYNC);
#endif
#ifdef UFFDIO_POISON /* Linux 6.6 */
    CONSTANT(UFFDIO_POISON);
    CONSTANT(_UFFDIO_POISON);
    CONSTANT(UFFDIO_POISON_MODE_DONTWAKE);
    CONSTANT(UFFD_FEATURE_POISON);
    STRUCT_SIZE(uffdio_poison);
    STRUCT_OFFSET(uffdio_poison, range);
    STRUCT_OFFSET(uffdio_poison, mode);
    STRUCT_OFFSET(uffdio_poison, updated);
#endif
#ifdef UFFDIO_MOVE /* Linux 6.8 */
    CONSTANT(UFFDIO_MOVE);
    CONSTANT(_UFFDIO_MOVE);
    CONSTANT(UFFDIO_MOVE_MODE_DONTWAKE);
    CONSTANT(UFFDIO_MOVE_MODE_ALLOW_SRC_HOLES);
    CONSTANT(UFFD_FEATURE_MOVE);
    STRUCT_SIZE(uffdio_move);
    STRUCT_OFFSET(uffdio_move, dst);
    STRUCT_OFFSET(uffdio_move, src);
    STRUCT_OFFSET(uffdio_move, len);
    STRUCT_OFFSET(uffdio_move, mode);
    STRUCT_OFFSET(uffdio_move, move);
#endif
}

static void page_scan(void)
{
#ifdef PAGEMAP_SCAN /* Linux 6.7 */
    CONSTANT(PAGEMAP_SCAN);
    CONSTANT(PM_SCAN_WP_MATCHING);
    CONSTANT(PM_SCAN_CHECK_WPASYNC);
    CONSTANT(PAGE_IS_WPALLOWED);
    CONSTANT(PAGE_IS_WRITTEN);
    CONSTANT(PAGE_IS_FILE);
    CONSTANT(PAGE_IS_PRESENT);
    CONSTANT(PAGE_IS_SWAPPED);
    CONSTANT(PAGE_IS_PFNZERO);
    CONSTANT(PAGE_IS_HUGE);
    STRUCT_SIZE(page_region);
    STRUCT_OFFSET(page_region, start);
    STRUCT_OFFSET(page_region, end);
    STRUCT_OFFSET(page_region, categories);
    STRUCT_SIZE(pm_scan_arg);
    STRUCT_OFFSET(pm_scan_arg, size);
    STRUCT_OFFSET(pm_scan_arg, flags);
    STRUCT_OFFSET(pm_scan_arg, start);
    STRUCT_OFFSET(pm_scan_arg, end);
    STRUCT_OFFSET(pm_scan_arg, walk_end);
    STRUCT_OFFSET(pm_scan_arg, vec);
    STRUCT_OFFSET(pm_scan_arg, vec_len);
    STRUCT_OFFSET(pm_scan_arg, max_pages);
    STRUCT_OFFSET(pm_scan_arg, category_inverted);
    STRUCT_OFFSET(pm_scan_arg, category_mask);
    STRUCT_OFFSET(pm_scan_arg, category_anyof_mask);
    STRUCT_OFFSET(pm_scan_arg, return_mask);
#endif
}

static void sockets(void)
{
    CONSTANT(AF_UNIX);
    CONSTANT(SOCK_STREAM);
    CONSTANT(SOCK_DGRAM);
    CONSTANT(SOCK_SEQPACKET);
    CONSTANT(SOCK_SEQPACKET);
    CONSTANT(SOCK_CLOEXEC);
    CONSTANT(SOCK_NONBLOCK);
    CONSTANT(SOL_SOCKET);
    CONSTANT(SOMAXCONN);
    CONSTANT(SCM_RIGHTS);
    CONSTANT(SO_TYPE);
    CONSTANT(SO_DOMAIN);
    CONSTANT(SO_PEERGROUPS);
    CONSTANT(SO_ERROR);
    CONSTANT(SO_SNDBUF);
    CONSTANT(SO_RCVBUF);
    CONSTANT(SO_SNDBUF);
    CONSTANT(SO_SNDBUFFORCE);
    CONSTANT(SO_PEERCRED);
    CONSTANT(SO_RCVTIMEO);
    CONSTANT(SO_SNDTIMEO);
    CONSTANT(SO_PASSCRED);
    CONSTANT(SO_ACCEPTCONN);
    CONSTANT(SO_RCVTIMEO);
    CONSTANT(SO_SNDTIMEO);
    CONSTANT(SHUT_RD);
    CONSTANT(SHUT_WR);
    CONSTANT(SHUT_WR);
    CONSTANT(SHUT_RDWR);
    CONSTANT(RWF_NOWAIT);
    CONSTANT(MSG_PEEK);
    CONSTANT(MSG_NOSIGNAL);
    CONSTANT(MSG_DONTWAIT);
    CONSTANT(MSG_TRUNC);
    CONSTANT(MSG_CTRUNC);
    CONSTANT(MSG_CMSG_CLOEXEC);

    STRUCT_SIZE(timeval);
    STRUCT_OFFSET(timeval, tv_sec);
    STRUCT_OFFSET(timeval, tv_usec);
    STRUCT_SIZE(timespec);
    STRUCT_OFFSET(timespec, tv_sec);
    STRUCT_OFFSET(timespec, tv_nsec);

    CONSTANT(RLIMIT_NOFILE);
    STRUCT_SIZE(rlimit);
    STRUCT_OFFSET(rlimit, rlim_cur);
    STRUCT_OFFSET(rlimit, rlim_max);

    STRUCT_SIZE(sockaddr_un);
    STRUCT_OFFSET(sockaddr_un, sun_family);
    STRUCT_OFFSET(sockaddr_un, sun_path);
    STRUCT_SIZE(msghdr);
    STRUCT_OFFSET(msghdr, msg_name);
    STRUCT_OFFSET(msghdr, msg_namelen);
    STRUCT_OFFSET(msghdr, msg_iov);
    STRUCT_OFFSET(msghdr, msg_iovlen);
    STRUCT_OFFSET(msghdr, msg_control);
    STRUCT_OFFSET(msghdr, msg_controllen);
    STRUCT_OFFSET(msghdr, msg_flags);
    STRUCT_SIZE(iovec);
    STRUCT_OFFSET(iovec, iov_base);
    STRUCT_OFFSET(iovec, iov_len);
    STRUCT_SIZE(cmsghdr);
    STRUCT_OFFSET(cmsghdr, cmsg_len);
    STRUCT_OFFSET(cmsghdr, cmsg_level);
    STRUCT_OFFSET(cmsghdr, cmsg_type);
    printf("CMSG_LEN(0) 0x%zx\n", (size_t)CMSG_LEN(0));
    printf("CMSG_LEN(4) 0x%zx\n", (size_t)CMSG_LEN(4));
    printf("CMSG_SPACE(4) 0x%zx\n", (size_t)CMSG_SPACE(4));
    STRUCT_SIZE(ucred);
    STRUCT_OFFSET(ucred, pid);
    STRUCT_OFFSET(ucred, uid);
    STRUCT_OFFSET(ucred, gid);
    SIZE(socklen_t, socklen_t);
}

static void events(void)
{
    CONSTANT(FUTEX_WAIT_PRIVATE);
    CONSTANT(FUTEX_WAKE_PRIVATE);
    CONSTANT(PRIO_PROCESS);
#ifdef IOPRIO_CLASS_SHIFT
    CONSTANT(IOPRIO_WHO_PROCESS);
    CONSTANT(IOPRIO_CLASS_IDLE);
    CONSTANT(IOPRIO_CLASS_SHIFT);
#endif
#ifdef SO_PEERPIDFD /* Linux 6.5 */
    CONSTANT(SO_PEERPIDFD);
#endif
    CONSTANT(SIGKILL);
    CONSTANT(EFD_CLOEXEC);
    CONSTANT(EFD_NONBLOCK);
    CONSTANT(EFD_SEMAPHORE);

    STRUCT_SIZE(pollfd);
    STRUCT_OFFSET(pollfd, fd);
    STRUCT_OFFSET(pollfd, events);
    STRUCT_OFFSET(pollfd, revents);
    SIZE(nfds_t, nfds_t);
    CONSTANT(POLLIN);
    CONSTANT(POLLOUT);
    CONSTANT(POLLPRI);
    CONSTANT(POLLOUT);
    CONSTANT(POLLERR);
    CONSTANT(POLLHUP);
    CONSTANT(POLLRDHUP);
    CONSTANT(POLLNVAL);
}

static void files(void)
{
    CONSTANT(O_RDONLY);
    CONSTANT(O_WRONLY);
    CONSTANT(O_RDWR);
    CONSTANT(O_CREAT);
    CONSTANT(O_EXCL);
    CONSTANT(O_TRUNC);
    CONSTANT(O_APPEND);
    CONSTANT(O_ACCMODE);
    CONSTANT(O_CLOEXEC);
    CONSTANT(O_NONBLOCK);
    CONSTANT(O_NOFOLLOW);
    CONSTANT(O_DIRECTORY);
    CONSTANT(O_PATH);
    CONSTANT(F_GETFD);
    CONSTANT(F_SETFD);
    CONSTANT(FD_CLOEXEC);
    CONSTANT(F_GETFL);
    CONSTANT(F_SETFL);
    CONSTANT(F_DUPFD_CLOEXEC);
    CONSTANT(F_OFD_GETLK);
    CONSTANT(F_OFD_SETLK);
    CONSTANT(F_RDLCK);
    CONSTANT(F_WRLCK);
    CONSTANT(F_UNLCK);
    STRUCT_SIZE(flock);
    STRUCT_OFFSET(flock, l_type);
    STRUCT_OFFSET(flock, l_whence);
    STRUCT_OFFSET(flock, l_start);
    STRUCT_OFFSET(flock, l_len);
    STRUCT_OFFSET(flock, l_pid);
    CONSTANT(SEEK_SET);
    CONSTANT(SEEK_DATA);
    CONSTANT(SEEK_HOLE);
    CONSTANT(FALLOC_FL_KEEP_SIZE);
    CONSTANT(FALLOC_FL_PUNCH_HOLE);
    CONSTANT(FALLOC_FL_ZERO_RANGE);
    CONSTANT(FICLONE);
    CONSTANT(RWF_DSYNC);
    SIZE(off_t, off_t);
    SIZE(mode_t, mode_t);
    SIZE(uid_t, uid_t);
    SIZE(pid_t, pid_t);

    CONSTANT(O_PATH);
    /* <linux/un.h> declares struct sockaddr_un anew. */
    printf("SIOCUNIXFILE 0x%x\n", SIOCPROTOPRIVATE + 0);
    CONSTANT(AT_FDCWD);
    CONSTANT(AT_EMPTY_PATH);
    CONSTANT(AT_SYMLINK_NOFOLLOW);
    CONSTANT(STATX_TYPE);
    CONSTANT(STATX_MODE);
    CONSTANT(STATX_UID);
    CONSTANT(STATX_GID);
    CONSTANT(STATX_INO);
    CONSTANT(STATX_SIZE);
    CONSTANT(STATX_BLOCKS);
    CONSTANT(STATX_BASIC_STATS);
    STRUCT_SIZE(statx);
    STRUCT_OFFSET(statx, stx_mask);
    STRUCT_OFFSET(statx, stx_blksize);
    STRUCT_OFFSET(statx, stx_attributes);
    STRUCT_OFFSET(statx, stx_nlink);
    STRUCT_OFFSET(statx, stx_uid);
    STRUCT_OFFSET(statx, stx_gid);
    STRUCT_OFFSET(statx, stx_mode);
    STRUCT_OFFSET(statx, stx_ino);
    STRUCT_OFFSET(statx, stx_size);
    STRUCT_OFFSET(statx, stx_blocks);
    STRUCT_OFFSET(statx, stx_mtime);
    STRUCT_OFFSET(statx, stx_rdev_major);
    STRUCT_OFFSET(statx, stx_rdev_minor);
    STRUCT_OFFSET(statx, stx_dev_major);
    STRUCT_OFFSET(statx, stx_dev_minor);
    STRUCT_SIZE(statx_timestamp);
    STRUCT_OFFSET(statx_timestamp, tv_sec);
    STRUCT_OFFSET(statx_timestamp, tv_nsec);
    CONSTANT(S_IFMT);
    CONSTANT(S_IFSOCK);
    CONSTANT(S_IFLNK);
    CONSTANT(S_IFREG);
    CONSTANT(S_IFBLK);
    CONSTANT(S_IFDIR);
    CONSTANT(S_IFIFO);
    CONSTANT(S_IFCHR);
    CONSTANT(S_IFIFO);
    CONSTANT(S_ISVTX);
    CONSTANT(S_IWGRP);
    CONSTANT(S_IWOTH);
    CONSTANT(F_OK);
    CONSTANT(R_OK);
    CONSTANT(W_OK);

    STRUCT_SIZE(statfs);
    STRUCT_OFFSET(statfs, f_type);
    STRUCT_OFFSET(statfs, f_bsize);
    printf("sizeof.statfs.f_type %zu\n", sizeof(((struct statfs *)0)->f_type));
    CONSTANT(HUGETLBFS_MAGIC);
    CONSTANT(TMPFS_MAGIC);

    STRUCT_SIZE(passwd);
    STRUCT_OFFSET(passwd, pw_name);
    STRUCT_OFFSET(passwd, pw_passwd);
    STRUCT_OFFSET(passwd, pw_uid);
    STRUCT_OFFSET(passwd, pw_gid);
    STRUCT_OFFSET(passwd, pw_dir);
    STRUCT_SIZE(group);
    STRUCT_OFFSET(group, gr_name);
    STRUCT_OFFSET(group, gr_passwd);
    STRUCT_OFFSET(group, gr_gid);
    STRUCT_OFFSET(group, gr_mem);
}

static void signals(void)
{
    CONSTANT(SIGURG);
    CONSTANT(SIGCHLD);
    CONSTANT(SA_NOCLDSTOP);

    STRUCT_SIZE(sigaction);
    STRUCT_OFFSET(sigaction, sa_flags);
}

static void errors(void)
{
    CONSTANT(EPERM);
    CONSTANT(ENOENT);
    CONSTANT(ESRCH);
    CONSTANT(EINTR);
    CONSTANT(EIO);
    CONSTANT(ENXIO);
    CONSTANT(E2BIG);
    CONSTANT(EBADF);
    CONSTANT(ECHILD);
    CONSTANT(EAGAIN);
    CONSTANT(EWOULDBLOCK);
    CONSTANT(ENOMEM);
    CONSTANT(EACCES);
    CONSTANT(EFAULT);
    CONSTANT(EBUSY);
    CONSTANT(EEXIST);
    CONSTANT(EXDEV);
    CONSTANT(ENODEV);
    CONSTANT(ENOTDIR);
    CONSTANT(EISDIR);
    CONSTANT(EINVAL);
    CONSTANT(ENFILE);
    CONSTANT(EMFILE);
    CONSTANT(ENOTTY);
    CONSTANT(ETXTBSY);
    CONSTANT(EFBIG);
    CONSTANT(ENOSPC);
    CONSTANT(ESPIPE);
    CONSTANT(EROFS);
    CONSTANT(EPIPE);
    CONSTANT(ERANGE);
    CONSTANT(ENAMETOOLONG);
    CONSTANT(ENOSYS);
    CONSTANT(ELOOP);
    CONSTANT(EBADMSG);
    CONSTANT(EOVERFLOW);
    CONSTANT(ENOTSOCK);
    CONSTANT(EMSGSIZE);
    CONSTANT(EPROTO);
    CONSTANT(EOPNOTSUPP);
    CONSTANT(ENOTSUP);
    CONSTANT(EMSGSIZE);
    CONSTANT(EADDRINUSE);
    CONSTANT(ECONNABORTED);
    CONSTANT(ECONNABORTED);
    CONSTANT(ECONNRESET);
    CONSTANT(ENOTCONN);
    CONSTANT(ETIMEDOUT);
    CONSTANT(EDQUOT);
    CONSTANT(ECONNREFUSED);
    CONSTANT(EINPROGRESS);
    CONSTANT(ECANCELED);
    CONSTANT(EHWPOISON);
}

static void processes(void)
{
    CONSTANT(POSIX_SPAWN_SETSIGDEF);
    CONSTANT(POSIX_SPAWN_SETSIGMASK);
    CONSTANT(POSIX_SPAWN_SETSID);
    CONSTANT(SIGKILL);
    CONSTANT(P_PID);
    CONSTANT(P_PIDFD);
    CONSTANT(P_PGID);
    CONSTANT(PR_SET_CHILD_SUBREAPER);
    CONSTANT(SIGTERM);
    CONSTANT(SIGSTOP);
    CONSTANT(SIGSYS);
    CONSTANT(WNOHANG);
    CONSTANT(WEXITED);
    CONSTANT(WNOWAIT);
    CONSTANT(CLD_EXITED);
    CONSTANT(CLD_DUMPED);
    CONSTANT(SYS_pidfd_send_signal);
    CONSTANT(SYS_pidfd_open);
    CONSTANT(SYS_pidfd_getfd);
}

static void tracing(void)
{
    CONSTANT(PTRACE_CONT);
    CONSTANT(PTRACE_DETACH);
    CONSTANT(PTRACE_SYSCALL);
    CONSTANT(PTRACE_GETSIGINFO);
    CONSTANT(PTRACE_GETREGSET);
    CONSTANT(PTRACE_SETREGSET);
    CONSTANT(PTRACE_SEIZE);
    CONSTANT(PTRACE_INTERRUPT);
    CONSTANT(PTRACE_GETSIGMASK);
    CONSTANT(PTRACE_SETSIGMASK);
    CONSTANT(PTRACE_GET_RSEQ_CONFIGURATION);
#ifdef PTRACE_GET_SYSCALL_USER_DISPATCH_CONFIG /* Linux 6.4 */
    CONSTANT(PTRACE_GET_SYSCALL_USER_DISPATCH_CONFIG);
#endif
    CONSTANT(PTRACE_O_TRACESYSGOOD);
    CONSTANT(PTRACE_O_SUSPEND_SECCOMP);
    CONSTANT(PTRACE_EVENT_STOP);
    CONSTANT(NT_PRSTATUS);
    CONSTANT(SIGTRAP);
#ifdef __x86_64__
    CONSTANT(RAX);
    CONSTANT(RDI);
    CONSTANT(ORIG_RAX);
    CONSTANT(RIP);
#endif
}

static void virtual_machines(void)
{
    CONSTANT(KVM_API_VERSION);
    CONSTANT(KVM_GET_API_VERSION);
    CONSTANT(KVM_CREATE_VM);
    CONSTANT(KVM_CHECK_EXTENSION);
    CONSTANT(KVM_GET_VCPU_MMAP_SIZE);
    CONSTANT(KVM_CREATE_VCPU);
    CONSTANT(KVM_GET_DIRTY_LOG);
    CONSTANT(KVM_SET_USER_MEMORY_REGION);
    CONSTANT(KVM_SET_TSS_ADDR);
    CONSTANT(KVM_IOEVENTFD);
    CONSTANT(KVM_RUN);
    CONSTANT(KVM_ENABLE_CAP);
    CONSTANT(KVM_CLEAR_DIRTY_LOG);
    CONSTANT(KVM_RESET_DIRTY_RINGS);
    CONSTANT(KVM_CAP_NR_MEMSLOTS);
    CONSTANT(KVM_CAP_IOEVENTFD);
    CONSTANT(KVM_CAP_READONLY_MEM);
    CONSTANT(KVM_CAP_IMMEDIATE_EXIT);
    CONSTANT(KVM_CAP_MANUAL_DIRTY_LOG_PROTECT2);
    CONSTANT(KVM_CAP_DIRTY_LOG_RING);
    CONSTANT(KVM_CAP_DIRTY_LOG_RING_ACQ_REL);
    CONSTANT(KVM_MEM_LOG_DIRTY_PAGES);
    CONSTANT(KVM_MEM_READONLY);
    CONSTANT(KVM_DIRTY_LOG_MANUAL_PROTECT_ENABLE);
    CONSTANT(KVM_DIRTY_LOG_INITIALLY_SET);
#if KVM_DIRTY_LOG_PAGE_OFFSET /* 0: no dirty ring, as on aarch64 before Linux 6.2 */
    CONSTANT(KVM_DIRTY_LOG_PAGE_OFFSET);
#endif
    CONSTANT(KVM_DIRTY_GFN_F_DIRTY);
    CONSTANT(KVM_DIRTY_GFN_F_RESET);
    CONSTANT(KVM_IOEVENTFD_FLAG_DATAMATCH);
    CONSTANT(KVM_IOEVENTFD_FLAG_PIO);
    CONSTANT(KVM_IOEVENTFD_FLAG_DEASSIGN);
    CONSTANT(KVM_EXIT_IO);
    CONSTANT(KVM_EXIT_HLT);
    CONSTANT(KVM_EXIT_MMIO);
    CONSTANT(KVM_EXIT_SHUTDOWN);
    CONSTANT(KVM_EXIT_FAIL_ENTRY);
    CONSTANT(KVM_EXIT_INTERNAL_ERROR);
    CONSTANT(KVM_EXIT_DIRTY_RING_FULL);
    CONSTANT(KVM_EXIT_IO_OUT);

    STRUCT_SIZE(kvm_userspace_memory_region);
    STRUCT_OFFSET(kvm_userspace_memory_region, slot);
    STRUCT_OFFSET(kvm_userspace_memory_region, flags);
    STRUCT_OFFSET(kvm_userspace_memory_region, guest_phys_addr);
    STRUCT_OFFSET(kvm_userspace_memory_region, memory_size);
    STRUCT_OFFSET(kvm_userspace_memory_region, userspace_addr);

    STRUCT_SIZE(kvm_dirty_log);
    STRUCT_OFFSET(kvm_dirty_log, slot);
    STRUCT_OFFSET(kvm_dirty_log, padding1);
    STRUCT_OFFSET(kvm_dirty_log, dirty_bitmap);

    STRUCT_SIZE(kvm_clear_dirty_log);
    STRUCT_OFFSET(kvm_clear_dirty_log, slot);
    STRUCT_OFFSET(kvm_clear_dirty_log, num_pages);
    STRUCT_OFFSET(kvm_clear_dirty_log, first_page);
    STRUCT_OFFSET(kvm_clear_dirty_log, dirty_bitmap);

    STRUCT_SIZE(kvm_dirty_gfn);
    STRUCT_OFFSET(kvm_dirty_gfn, flags);
    STRUCT_OFFSET(kvm_dirty_gfn, slot);
    STRUCT_OFFSET(kvm_dirty_gfn, offset);

    STRUCT_SIZE(kvm_enable_cap);
    STRUCT_OFFSET(kvm_enable_cap, cap);
    STRUCT_OFFSET(kvm_enable_cap, flags);
    STRUCT_OFFSET(kvm_enable_cap, args);

    STRUCT_SIZE(kvm_ioeventfd);
    STRUCT_OFFSET(kvm_ioeventfd, datamatch);
    STRUCT_OFFSET(kvm_ioeventfd, addr);
    STRUCT_OFFSET(kvm_ioeventfd, len);
    STRUCT_OFFSET(kvm_ioeventfd, fd);
    STRUCT_OFFSET(kvm_ioeventfd, flags);

    STRUCT_SIZE(kvm_run);
    STRUCT_OFFSET(kvm_run, immediate_exit);
    STRUCT_OFFSET(kvm_run, exit_reason);
    STRUCT_OFFSET(kvm_run, hw.hardware_exit_reason);
    STRUCT_OFFSET(kvm_run, io.direction);
    STRUCT_OFFSET(kvm_run, io.size);
    STRUCT_OFFSET(kvm_run, io.port);
    STRUCT_OFFSET(kvm_run, io.count);
    STRUCT_OFFSET(kvm_run, io.data_offset);
    STRUCT_OFFSET(kvm_run, mmio.phys_addr);
    STRUCT_OFFSET(kvm_run, mmio.data);
    STRUCT_OFFSET(kvm_run, mmio.len);
    STRUCT_OFFSET(kvm_run, mmio.is_write);
    STRUCT_OFFSET(kvm_run, internal.suberror);
}

#ifdef __x86_64__
/* The state of a vCPU is the architecture's own. */
static void virtual_cpus(void)
{
    CONSTANT(KVM_GET_SUPPORTED_CPUID);
    CONSTANT(KVM_GET_REGS);
    CONSTANT(KVM_SET_REGS);
    CONSTANT(KVM_GET_SREGS);
    CONSTANT(KVM_SET_SREGS);
    CONSTANT(KVM_SET_CPUID2);

    STRUCT_SIZE(kvm_regs);
    STRUCT_OFFSET(kvm_regs, rax);
    STRUCT_OFFSET(kvm_regs, rbx);
    STRUCT_OFFSET(kvm_regs, rcx);
    STRUCT_OFFSET(kvm_regs, rdx);
    STRUCT_OFFSET(kvm_regs, rsi);
    STRUCT_OFFSET(kvm_regs, rdi);
    STRUCT_OFFSET(kvm_regs, rsp);
    STRUCT_OFFSET(kvm_regs, rbp);
    STRUCT_OFFSET(kvm_regs, r8);
    STRUCT_OFFSET(kvm_regs, r9);
    STRUCT_OFFSET(kvm_regs, r10);
    STRUCT_OFFSET(kvm_regs, r11);
    STRUCT_OFFSET(kvm_regs, r12);
    STRUCT_OFFSET(kvm_regs, r13);
    STRUCT_OFFSET(kvm_regs, r14);
    STRUCT_OFFSET(kvm_regs, r15);
    STRUCT_OFFSET(kvm_regs, rip);
    STRUCT_OFFSET(kvm_regs, rflags);

    STRUCT_SIZE(kvm_segment);
    STRUCT_OFFSET(kvm_segment, base);
    STRUCT_OFFSET(kvm_segment, limit);
    STRUCT_OFFSET(kvm_segment, selector);
    STRUCT_OFFSET(kvm_segment, type);
    STRUCT_OFFSET(kvm_segment, present);
    STRUCT_OFFSET(kvm_segment, dpl);
    STRUCT_OFFSET(kvm_segment, db);
    STRUCT_OFFSET(kvm_segment, s);
    STRUCT_OFFSET(kvm_segment, l);
    STRUCT_OFFSET(kvm_segment, g);
    STRUCT_OFFSET(kvm_segment, avl);
    STRUCT_OFFSET(kvm_segment, unusable);
    STRUCT_OFFSET(kvm_segment, padding);

    STRUCT_SIZE(kvm_dtable);
    STRUCT_OFFSET(kvm_dtable, base);
    STRUCT_OFFSET(kvm_dtable, limit);

    STRUCT_SIZE(kvm_sregs);
    STRUCT_OFFSET(kvm_sregs, cs);
    STRUCT_OFFSET(kvm_sregs, ds);
    STRUCT_OFFSET(kvm_sregs, es);
    STRUCT_OFFSET(kvm_sregs, fs);
    STRUCT_OFFSET(kvm_sregs, gs);
    STRUCT_OFFSET(kvm_sregs, ss);
    STRUCT_OFFSET(kvm_sregs, tr);
    STRUCT_OFFSET(kvm_sregs, ldt);
    STRUCT_OFFSET(kvm_sregs, gdt);
    STRUCT_OFFSET(kvm_sregs, idt);
    STRUCT_OFFSET(kvm_sregs, cr0);
    STRUCT_OFFSET(kvm_sregs, cr2);
    STRUCT_OFFSET(kvm_sregs, cr3);
    STRUCT_OFFSET(kvm_sregs, cr4);
    STRUCT_OFFSET(kvm_sregs, cr8);
    STRUCT_OFFSET(kvm_sregs, efer);
    STRUCT_OFFSET(kvm_sregs, apic_base);
    STRUCT_OFFSET(kvm_sregs, interrupt_bitmap);
}
#endif

static void rights(void)
{
    CONSTANT(CAP_FOWNER);
    CONSTANT(CAP_KILL);
    CONSTANT(CAP_SETGID);
    CONSTANT(CAP_SETUID);
    CONSTANT(CAP_SETPCAP);
    CONSTANT(PR_SET_KEEPCAPS);
    CONSTANT(PR_CAPBSET_READ);
    CONSTANT(PR_CAPBSET_DROP);
    CONSTANT(PR_SET_NO_NEW_PRIVS);
    CONSTANT(PR_CAP_AMBIENT);
    CONSTANT(PR_CAP_AMBIENT_RAISE);
    CONSTANT(PR_CAP_AMBIENT_CLEAR_ALL);
    CONSTANT(PR_SET_NAME);
#ifdef PR_SET_VMA
    CONSTANT(PR_SET_VMA);
#endif
    printf("LINUX_CAPABILITY_VERSION_3 0x%x\n", _LINUX_CAPABILITY_VERSION_3);

    STRUCT_SIZE(__user_cap_header_struct);
    STRUCT_OFFSET(__user_cap_header_struct, version);
    STRUCT_OFFSET(__user_cap_header_struct, pid);

    STRUCT_SIZE(__user_cap_data_struct);
    STRUCT_OFFSET(__user_cap_data_struct, effective);
    STRUCT_OFFSET(__user_cap_data_struct, permitted);
    STRUCT_OFFSET(__user_cap_data_struct, inheritable);

    CONSTANT(CLONE_VM);
    CONSTANT(CLONE_FS);
    CONSTANT(CLONE_FILES);
    CONSTANT(CLONE_SIGHAND);
    CONSTANT(CLONE_THREAD);
    CONSTANT(CLONE_SYSVSEM);
    CONSTANT(CLONE_SETTLS);
    CONSTANT(CLONE_PARENT_SETTID);
    CONSTANT(CLONE_CHILD_CLEARTID);
    CONSTANT(CLONE_DETACHED);
}

static void system_calls(void)
{
    CONSTANT(SECCOMP_SET_MODE_FILTER);
    CONSTANT(SECCOMP_FILTER_FLAG_TSYNC);
    CONSTANT(SECCOMP_RET_KILL_PROCESS);
    CONSTANT(SECCOMP_RET_ERRNO);
    CONSTANT(SECCOMP_RET_ALLOW);
    CONSTANT(AUDIT_ARCH_X86_64);
    CONSTANT(AUDIT_ARCH_AARCH64);
    CONSTANT(BPF_LD);
    CONSTANT(BPF_ALU);
    CONSTANT(BPF_JMP);
    CONSTANT(BPF_RET);
    CONSTANT(BPF_W);
    CONSTANT(BPF_ABS);
    CONSTANT(BPF_K);
    CONSTANT(BPF_AND);
    CONSTANT(BPF_JA);
    CONSTANT(BPF_JEQ);
    CONSTANT(BPF_JGE);

    STRUCT_SIZE(sock_filter);
    STRUCT_OFFSET(sock_filter, code);
    STRUCT_OFFSET(sock_filter, jt);
    STRUCT_OFFSET(sock_filter, jf);
    STRUCT_OFFSET(sock_filter, k);

    STRUCT_SIZE(sock_fprog);
    STRUCT_OFFSET(sock_fprog, len);
    STRUCT_OFFSET(sock_fprog, filter);

#ifdef __NR_access
    CALL(access);
#endif
#ifdef __NR_brk
    CALL(brk);
#endif
#ifdef __NR_capget
    CALL(capget);
#endif
#ifdef __NR_capset
    CALL(capset);
#endif
#ifdef __NR_clock_getres
    CALL(clock_getres);
#endif
#ifdef __NR_clock_gettime
    CALL(clock_gettime);
#endif
#ifdef __NR_clock_nanosleep
    CALL(clock_nanosleep);
#endif
#ifdef __NR_clone
    CALL(clone);
#endif
#ifdef __NR_clone3
    CALL(clone3);
#endif
#ifdef __NR_close
    CALL(close);
#endif
#ifdef __NR_epoll_ctl
    CALL(epoll_ctl);
#endif
#ifdef __NR_epoll_pwait
    CALL(epoll_pwait);
#endif
#ifdef __NR_epoll_pwait2
    CALL(epoll_pwait2);
#endif
#ifdef __NR_epoll_wait
    CALL(epoll_wait);
#endif
#ifdef __NR_eventfd2
    CALL(eventfd2);
#endif
#ifdef __NR_exit
    CALL(exit);
#endif
#ifdef __NR_exit_group
    CALL(exit_group);
#endif
#ifdef __NR_faccessat
    CALL(faccessat);
#endif
#ifdef __NR_faccessat2
    CALL(faccessat2);
#endif
#ifdef __NR_fcntl
    CALL(fcntl);
#endif
#ifdef __NR_fstat
    CALL(fstat);
#endif
#ifdef __NR_ftruncate
    CALL(ftruncate);
#endif
#ifdef __NR_futex
    CALL(futex);
#endif
#ifdef __NR_getcpu
    CALL(getcpu);
#endif
#ifdef __NR_getcwd
    CALL(getcwd);
#endif
#ifdef __NR_getdents64
    CALL(getdents64);
#endif
#ifdef __NR_getpid
    CALL(getpid);
#endif
#ifdef __NR_getrandom
    CALL(getrandom);
#endif
#ifdef __NR_getrusage
    CALL(getrusage);
#endif
#ifdef __NR_gettid
    CALL(gettid);
#endif
#ifdef __NR_gettimeofday
    CALL(gettimeofday);
#endif
#ifdef __NR_io_getevents
    CALL(io_getevents);
#endif
#ifdef __NR_io_pgetevents
    CALL(io_pgetevents);
#endif
#ifdef __NR_io_uring_enter
    CALL(io_uring_enter);
#endif
#ifdef __NR_ioctl
    CALL(io_uring_enter);
    CALL(io_uring_setup);
    CALL(ioctl);
#endif
#ifdef __NR_ioprio_set
    CALL(ioprio_set);
#endif
#ifdef __NR_lseek
    CALL(lseek);
#endif
#ifdef __NR_lstat
    CALL(lstat);
#endif
#ifdef __NR_madvise
    CALL(madvise);
#endif
#ifdef __NR_membarrier
    CALL(membarrier);
#endif
#ifdef __NR_mincore
    CALL(mincore);
#endif
#ifdef __NR_mmap
    CALL(mmap);
#endif
#ifdef __NR_mprotect
    CALL(mprotect);
#endif
#ifdef __NR_mremap
    CALL(mremap);
#endif
#ifdef __NR_munmap
    CALL(munmap);
#endif
#ifdef __NR_nanosleep
    CALL(nanosleep);
#endif
#ifdef __NR_newfstatat
    CALL(newfstatat);
#endif
#ifdef __NR_open
    CALL(open);
#endif
#ifdef __NR_openat
    CALL(openat);
#endif
#ifdef __NR_pidfd_send_signal
    CALL(pidfd_send_signal);
#endif
#ifdef __NR_pipe2
    CALL(pipe2);
#endif
#ifdef __NR_poll
    CALL(poll);
#endif
#ifdef __NR_ppoll
    CALL(ppoll);
#endif
#ifdef __NR_prctl
    CALL(prctl);
#endif
#ifdef __NR_pread64
    CALL(pread64);
#endif
#ifdef __NR_preadv2
    CALL(preadv2);
#endif
#ifdef __NR_prlimit64
    CALL(prlimit64);
#endif
#ifdef __NR_process_vm_readv
    CALL(process_vm_readv);
#endif
#ifdef __NR_pwrite64
    CALL(pwrite64);
#endif
#ifdef __NR_read
    CALL(read);
#endif
#ifdef __NR_readlink
    CALL(readlink);
#endif
#ifdef __NR_readlinkat
    CALL(readlinkat);
#endif
#ifdef __NR_recvfrom
    CALL(recvfrom);
#endif
#ifdef __NR_recvmsg
    CALL(recvmsg);
#endif
#ifdef __NR_restart_syscall
    CALL(restart_syscall);
#endif
#ifdef __NR_rseq
    CALL(rseq);
#endif
#ifdef __NR_rt_sigaction
    CALL(rt_sigaction);
#endif
#ifdef __NR_rt_sigprocmask
    CALL(rt_sigprocmask);
#endif
#ifdef __NR_rt_sigreturn
    CALL(rt_sigreturn);
#endif
#ifdef __NR_rt_sigtimedwait
    CALL(rt_sigtimedwait);
#endif
#ifdef __NR_sched_get_priority_max
    CALL(sched_get_priority_max);
#endif
#ifdef __NR_sched_get_priority_min
    CALL(sched_get_priority_min);
#endif
#ifdef __NR_sched_getaffinity
    CALL(sched_getaffinity);
#endif
#ifdef __NR_sched_getparam
    CALL(sched_getparam);
#endif
#ifdef __NR_sched_getscheduler
    CALL(sched_getscheduler);
#endif
#ifdef __NR_sched_setaffinity
    CALL(sched_setaffinity);
#endif
#ifdef __NR_sched_setscheduler
    CALL(sched_setscheduler);
#endif
#ifdef __NR_sched_yield
    CALL(sched_yield);
#endif
#ifdef __NR_seccomp
    CALL(seccomp);
#endif
#ifdef __NR_semop
    CALL(semop);
#endif
#ifdef __NR_semtimedop
    CALL(semtimedop);
#endif
#ifdef __NR_sendmsg
    CALL(sendmsg);
#endif
#ifdef __NR_set_robust_list
    CALL(set_robust_list);
#endif
#ifdef __NR_setgroups
    CALL(setgroups);
#endif
#ifdef __NR_setpriority
    CALL(setpriority);
#endif
#ifdef __NR_setresgid
    CALL(setresgid);
#endif
#ifdef __NR_setresuid
    CALL(setresuid);
#endif
#ifdef __NR_sigaltstack
    CALL(sigaltstack);
#endif
#ifdef __NR_stat
    CALL(stat);
#endif
#ifdef __NR_statx
    CALL(statx);
#endif
#ifdef __NR_sysinfo
    CALL(sysinfo);
#endif
#ifdef __NR_tgkill
    CALL(tgkill);
#endif
#ifdef __NR_unlink
    CALL(unlink);
#endif
#ifdef __NR_write
    CALL(write);
#endif
}

static void xen_devices(void)
{
    CONSTANT(IOCTL_PRIVCMD_MMAPBATCH_V2);
    STRUCT_SIZE(privcmd_mmapbatch_v2);
    STRUCT_OFFSET(privcmd_mmapbatch_v2, num);
    STRUCT_OFFSET(privcmd_mmapbatch_v2, dom);
    STRUCT_OFFSET(privcmd_mmapbatch_v2, addr);
    STRUCT_OFFSET(privcmd_mmapbatch_v2, arr);
    STRUCT_OFFSET(privcmd_mmapbatch_v2, err);

    CONSTANT(IOCTL_GNTDEV_MAP_GRANT_REF);
    CONSTANT(IOCTL_GNTDEV_UNMAP_GRANT_REF);
    STRUCT_SIZE(ioctl_gntdev_grant_ref);
    STRUCT_OFFSET(ioctl_gntdev_grant_ref, domid);
    STRUCT_OFFSET(ioctl_gntdev_grant_ref, ref);
    STRUCT_SIZE(ioctl_gntdev_map_grant_ref);
    STRUCT_OFFSET(ioctl_gntdev_map_grant_ref, count);
    STRUCT_OFFSET(ioctl_gntdev_map_grant_ref, pad);
    STRUCT_OFFSET(ioctl_gntdev_map_grant_ref, index);
    STRUCT_OFFSET(ioctl_gntdev_map_grant_ref, refs);
    STRUCT_SIZE(ioctl_gntdev_unmap_grant_ref);
    STRUCT_OFFSET(ioctl_gntdev_unmap_grant_ref, index);
    STRUCT_OFFSET(ioctl_gntdev_unmap_grant_ref, count);
    STRUCT_OFFSET(ioctl_gntdev_unmap_grant_ref, pad);
}

static void xen_domains(void)
{
#ifdef XEN_DOMCTL_INTERFACE_VERSION
#if XEN_DOMCTL_INTERFACE_VERSION == 0x15 /* 4.17 */
    STRUCT_SIZE(xen_domctl_getdomaininfo);
    STRUCT_OFFSET(xen_domctl_getdomaininfo, domain);
    STRUCT_OFFSET(xen_domctl_getdomaininfo, flags);
    STRUCT_OFFSET(xen_domctl_getdomaininfo, tot_pages);
    STRUCT_OFFSET(xen_domctl_getdomaininfo, max_pages);
    STRUCT_OFFSET(xen_domctl_getdomaininfo, nr_online_vcpus);
    STRUCT_OFFSET(xen_domctl_getdomaininfo, handle);
#endif
#endif
}

static void vhost(void)
{
    CONSTANT(VHOST_VRING_F_LOG);
    CONSTANT(VHOST_F_LOG_ALL);
    CONSTANT(VIRTIO_RING_F_INDIRECT_DESC);
    CONSTANT(VIRTIO_RING_F_EVENT_IDX);
    CONSTANT(VIRTIO_F_VERSION_1);
    CONSTANT(VRING_DESC_F_NEXT);
    CONSTANT(VRING_DESC_F_WRITE);
    CONSTANT(VRING_DESC_F_INDIRECT);
    CONSTANT(VRING_USED_F_NO_NOTIFY);
    CONSTANT(VRING_AVAIL_F_NO_INTERRUPT);
    STRUCT_SIZE(vhost_vring_state);
    STRUCT_OFFSET(vhost_vring_state, index);
    STRUCT_OFFSET(vhost_vring_state, num);
    STRUCT_SIZE(vhost_vring_addr);
    STRUCT_OFFSET(vhost_vring_addr, index);
    STRUCT_OFFSET(vhost_vring_addr, flags);
    STRUCT_OFFSET(vhost_vring_addr, desc_user_addr);
    STRUCT_OFFSET(vhost_vring_addr, used_user_addr);
    STRUCT_OFFSET(vhost_vring_addr, avail_user_addr);
    STRUCT_OFFSET(vhost_vring_addr, log_guest_addr);
    STRUCT_SIZE(vhost_memory_region);
    STRUCT_OFFSET(vhost_memory_region, guest_phys_addr);
    STRUCT_OFFSET(vhost_memory_region, memory_size);
    STRUCT_OFFSET(vhost_memory_region, userspace_addr);
    STRUCT_OFFSET(vhost_memory_region, flags_padding);
    STRUCT_SIZE(vring_desc);
    STRUCT_OFFSET(vring_desc, addr);
    STRUCT_OFFSET(vring_desc, len);
    STRUCT_OFFSET(vring_desc, flags);
    STRUCT_OFFSET(vring_desc, next);
    STRUCT_SIZE(vring_used_elem);
    STRUCT_OFFSET(vring_used_elem, id);
    STRUCT_OFFSET(vring_used_elem, len);
}

static void disks(void)
{
    CONSTANT(VIRTIO_BLK_F_SEG_MAX);
    CONSTANT(VIRTIO_BLK_F_RO);
    CONSTANT(VIRTIO_BLK_F_BLK_SIZE);
    CONSTANT(VIRTIO_BLK_F_FLUSH);
    CONSTANT(VIRTIO_BLK_F_MQ);
    CONSTANT(VIRTIO_BLK_F_DISCARD);
    CONSTANT(VIRTIO_BLK_F_WRITE_ZEROES);
    CONSTANT(VIRTIO_BLK_T_IN);
    CONSTANT(VIRTIO_BLK_T_OUT);
    CONSTANT(VIRTIO_BLK_T_FLUSH);
    CONSTANT(VIRTIO_BLK_T_GET_ID);
    CONSTANT(VIRTIO_BLK_T_DISCARD);
    CONSTANT(VIRTIO_BLK_T_WRITE_ZEROES);
    CONSTANT(VIRTIO_BLK_S_OK);
    CONSTANT(VIRTIO_BLK_S_IOERR);
    CONSTANT(VIRTIO_BLK_S_UNSUPP);
    CONSTANT(VIRTIO_BLK_ID_BYTES);
    CONSTANT(VIRTIO_BLK_WRITE_ZEROES_FLAG_UNMAP);
    STRUCT_SIZE(virtio_blk_outhdr);
    STRUCT_OFFSET(virtio_blk_outhdr, type);
    STRUCT_OFFSET(virtio_blk_outhdr, ioprio);
    STRUCT_OFFSET(virtio_blk_outhdr, sector);
    STRUCT_SIZE(virtio_blk_discard_write_zeroes);
    STRUCT_OFFSET(virtio_blk_discard_write_zeroes, sector);
    STRUCT_OFFSET(virtio_blk_discard_write_zeroes, num_sectors);
    STRUCT_OFFSET(virtio_blk_discard_write_zeroes, flags);
    /* Up to its end in virtio 1.1: later members came behind that. */
    printf("sizeof.virtio_blk_config %zu\n", offsetof(struct virtio_blk_config, unused1) + sizeof(((struct virtio_blk_config *)0)->unused1));
    STRUCT_OFFSET(virtio_blk_config, capacity);
    STRUCT_OFFSET(virtio_blk_config, seg_max);
    STRUCT_OFFSET(virtio_blk_config, blk_size);
    STRUCT_OFFSET(virtio_blk_config, num_queues);
    STRUCT_OFFSET(virtio_blk_config, max_discard_sectors);
    STRUCT_OFFSET(virtio_blk_config, max_discard_seg);
    STRUCT_OFFSET(virtio_blk_config, discard_sector_alignment);
    STRUCT_OFFSET(virtio_blk_config, max_write_zeroes_sectors);
    STRUCT_OFFSET(virtio_blk_config, max_write_zeroes_seg);
    STRUCT_OFFSET(virtio_blk_config, write_zeroes_may_unmap);
}

static void rings_of_requests(void)
{
    CONSTANT(IORING_OP_READV);
    CONSTANT(IORING_OP_WRITEV);
    CONSTANT(IORING_OP_FSYNC);
    CONSTANT(IORING_OP_POLL_ADD);
    CONSTANT(IORING_OP_FALLOCATE);
    CONSTANT(IORING_FSYNC_DATASYNC);
    CONSTANT(IORING_SETUP_CQSIZE);
    CONSTANT(IORING_FEAT_SINGLE_MMAP);
    CONSTANT(IORING_FEAT_NODROP);
    CONSTANT(IORING_ENTER_GETEVENTS);
    CONSTANT(IORING_OFF_SQ_RING);
    CONSTANT(IORING_OFF_SQES);
    STRUCT_SIZE(io_uring_sqe);
    STRUCT_OFFSET(io_uring_sqe, opcode);
    STRUCT_OFFSET(io_uring_sqe, fd);
    STRUCT_OFFSET(io_uring_sqe, off);
    STRUCT_OFFSET(io_uring_sqe, addr);
    STRUCT_OFFSET(io_uring_sqe, len);
    STRUCT_OFFSET(io_uring_sqe, rw_flags);
    STRUCT_OFFSET(io_uring_sqe, user_data);
    STRUCT_SIZE(io_uring_cqe);
    STRUCT_OFFSET(io_uring_cqe, user_data);
    STRUCT_OFFSET(io_uring_cqe, res);
    STRUCT_OFFSET(io_uring_cqe, flags);
    STRUCT_SIZE(io_sqring_offsets);
    STRUCT_OFFSET(io_sqring_offsets, head);
    STRUCT_OFFSET(io_sqring_offsets, tail);
    STRUCT_OFFSET(io_sqring_offsets, ring_mask);
    STRUCT_OFFSET(io_sqring_offsets, array);
    STRUCT_SIZE(io_cqring_offsets);
    STRUCT_OFFSET(io_cqring_offsets, head);
    STRUCT_OFFSET(io_cqring_offsets, tail);
    STRUCT_OFFSET(io_cqring_offsets, ring_mask);
    STRUCT_OFFSET(io_cqring_offsets, cqes);
    STRUCT_SIZE(io_uring_params);
    STRUCT_OFFSET(io_uring_params, sq_entries);
    STRUCT_OFFSET(io_uring_params, cq_entries);
    STRUCT_OFFSET(io_uring_params, flags);
    STRUCT_OFFSET(io_uring_params, features);
    STRUCT_OFFSET(io_uring_params, sq_off);
    STRUCT_OFFSET(io_uring_params, cq_off);
}

int main(void)
{
    vhost();
    disks();
    rings_of_requests();
    waiting_for_many();
    memory_mapping();
    userfault();
    page_scan();
    sockets();
    events();
    files();
    processes();
    tracing();
    rights();
    system_calls();
    virtual_machines();
    xen_devices();
    xen_domains();
#ifdef __x86_64__
    virtual_cpus();
#endif
    signals();
    errors();
    return 0;
}
