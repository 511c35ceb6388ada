/* A library to preload: fails, or kills the process at, the k-th change of the files below one folder.

   Configured by the environment when a process starts, or by `disk_faults_arm` at any later time, in a forked child:

       DISK_FAULTS_FOLDER     what lies below it is watched; everything else is left alone
       DISK_FAULTS_OPERATION  one of the names given to `strike` below, or `any`
       DISK_FAULTS_AT         1 for the first such operation; 0: none, all are only counted
       DISK_FAULTS_ERRNO      the fault; 0: the process is killed instead, a write being half done by then; negative:
                              it gets the signal of that number, and the operation is done when it goes on
       DISK_FAULTS_STAYS      1: the later ones fail as well, as on a disk that stays full
       DISK_FAULTS_TRACE      file that gets a line `operation path` for each operation

   `lock` (flock, fcntl), `read` (opening a file to read it) and `from` (what is renamed) are no part of `any`. */

#define _GNU_SOURCE
#include <dlfcn.h>
#include <errno.h>
#include <fcntl.h>
#include <limits.h>
#include <signal.h>
#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/file.h>
#include <sys/sendfile.h>
#include <sys/stat.h>
#include <sys/syscall.h>
#include <sys/uio.h>
#include <unistd.h>

static char folder[PATH_MAX], operation[16];
static long at, seen;
static int fault, stays, trace = -1;

#define REAL(name) ({ if (!real_##name) real_##name = dlsym(RTLD_NEXT, #name); real_##name; })
#define DECLARE(name) static __typeof__(name) *real_##name

void disk_faults_arm(const char *in, const char *what, long number, int error, int remains, const char *log) {
    snprintf(folder, sizeof folder, "%s/", in);
    snprintf(operation, sizeof operation, "%s", what);
    at = number, seen = 0, fault = error, stays = remains;
    if (trace >= 0) syscall(SYS_close, trace);
    trace = *log ? syscall(SYS_openat, AT_FDCWD, log, O_WRONLY | O_CREAT | O_APPEND | O_CLOEXEC, 0644) : -1;
}

static const char *setting(const char *name) { return getenv(name) ? getenv(name) : ""; }

__attribute__((constructor)) static void arm_from_environment(void) {
    if (!*setting("DISK_FAULTS_FOLDER")) return;
    disk_faults_arm(setting("DISK_FAULTS_FOLDER"), setting("DISK_FAULTS_OPERATION"), atol(setting("DISK_FAULTS_AT")),
                    atoi(setting("DISK_FAULTS_ERRNO")), atoi(setting("DISK_FAULTS_STAYS")),
                    setting("DISK_FAULTS_TRACE"));
}

static void absolute(int base, const char *path, char *whole) {
    char link[64];
    if (path && *path == '/') {
        snprintf(whole, PATH_MAX, "%s", path);
        return;
    }
    snprintf(link, sizeof link, base == AT_FDCWD ? "/proc/self/cwd" : "/proc/self/fd/%d", base);
    ssize_t length = readlink(link, whole, PATH_MAX / 2);
    whole[length < 0 ? 0 : length] = 0;
    if (path && *path) {
        strcat(whole, "/");
        strncat(whole, path, PATH_MAX / 2 - 2);
    }
}

enum { PASS, FAIL, KILL };

/* Counts one operation, on `path` under the open folder `base` or, without a path, on the open file `base`. */
static int strike(const char *name, int base, const char *path) {
    char whole[PATH_MAX];
    if (!*folder) return PASS;
    int before = errno;
    absolute(base, path, whole);
    errno = before;
    if (strncmp(whole, folder, strlen(folder)) && strncmp(whole, folder, strlen(folder) - 1)) return PASS;
    if (strlen(whole) >= strlen(folder) && whole[strlen(folder) - 1] != '/') return PASS;
    if (trace >= 0) {
        char line[PATH_MAX + 32];
        syscall(SYS_write, trace, line, snprintf(line, sizeof line, "%s %s\n", name, whole));
    }
    int is_apart = !strcmp(name, "lock") || !strcmp(name, "read") || !strcmp(name, "from");
    if (strcmp(operation, name) && (is_apart || strcmp(operation, "any"))) return PASS;
    long number = __sync_add_and_fetch(&seen, 1);
    if (!at || number < at || (number > at && !stays)) return PASS;
    errno = fault < 0 ? before : fault;
    if (fault < 0) kill(getpid(), -fault);
    return fault < 0 ? PASS : fault ? FAIL : KILL;
}

static int die(void) {
    kill(getpid(), SIGKILL);
    return -1;
}

#define GUARD(...) do { int outcome = strike(__VA_ARGS__); if (outcome) return outcome == KILL ? die() : -1; } while (0)

#define HOOK(type, name, parameters, arguments, ...) \
    DECLARE(name); type name parameters { GUARD(__VA_ARGS__); return REAL(name) arguments; }

#define HOOK_WRITE(name, parameters, arguments, half, ...) \
    DECLARE(name); ssize_t name parameters { \
        int outcome = strike("write", __VA_ARGS__, NULL); \
        if (outcome == KILL) { if (REAL(name) half < 0) {} die(); } \
        return outcome ? -1 : REAL(name) arguments; }

#define HOOK_OPEN(name, parameters, arguments, base) \
    DECLARE(name); int name parameters { \
        va_list rest; va_start(rest, flags); int mode = va_arg(rest, int); va_end(rest); \
        GUARD((flags & O_ACCMODE) == O_RDONLY && !(flags & O_CREAT) ? "read" : "open", base, path); \
        return REAL(name) arguments; }

HOOK_OPEN(open, (const char *path, int flags, ...), (path, flags, mode), AT_FDCWD)
HOOK_OPEN(open64, (const char *path, int flags, ...), (path, flags, mode), AT_FDCWD)
HOOK_OPEN(openat, (int base, const char *path, int flags, ...), (base, path, flags, mode), base)
HOOK_OPEN(openat64, (int base, const char *path, int flags, ...), (base, path, flags, mode), base)
HOOK(int, creat, (const char *path, mode_t mode), (path, mode), "open", AT_FDCWD, path)
HOOK(int, creat64, (const char *path, mode_t mode), (path, mode), "open", AT_FDCWD, path)

#define HOOK_FOPEN(name) \
    DECLARE(name); FILE *name(const char *path, const char *mode) { \
        int outcome = strike(strpbrk(mode, "wa+") ? "open" : "read", AT_FDCWD, path); \
        if (outcome == KILL) die(); \
        return outcome ? NULL : REAL(name)(path, mode); }
HOOK_FOPEN(fopen)
HOOK_FOPEN(fopen64)

HOOK_WRITE(write, (int fd, const void *data, size_t size), (fd, data, size), (fd, data, size / 2), fd)
HOOK_WRITE(pwrite, (int fd, const void *data, size_t size, off_t from), (fd, data, size, from),
           (fd, data, size / 2, from), fd)
HOOK_WRITE(pwrite64, (int fd, const void *data, size_t size, off64_t from), (fd, data, size, from),
           (fd, data, size / 2, from), fd)
HOOK_WRITE(writev, (int fd, const struct iovec *parts, int number), (fd, parts, number), (fd, parts, number / 2), fd)
HOOK_WRITE(pwritev, (int fd, const struct iovec *parts, int number, off_t from), (fd, parts, number, from),
           (fd, parts, number / 2, from), fd)
HOOK_WRITE(sendfile, (int fd, int source, off_t *from, size_t size), (fd, source, from, size),
           (fd, source, from, size / 2), fd)
HOOK_WRITE(sendfile64, (int fd, int source, off64_t *from, size_t size), (fd, source, from, size),
           (fd, source, from, size / 2), fd)
HOOK_WRITE(copy_file_range, (int source, off64_t *from, int fd, off64_t *to, size_t size, unsigned flags),
           (source, from, fd, to, size, flags), (source, from, fd, to, size / 2, flags), fd)

HOOK(int, fsync, (int fd), (fd), "fsync", fd, NULL)
HOOK(int, fdatasync, (int fd), (fd), "fsync", fd, NULL)
HOOK(int, ftruncate, (int fd, off_t size), (fd, size), "truncate", fd, NULL)
HOOK(int, ftruncate64, (int fd, off64_t size), (fd, size), "truncate", fd, NULL)
HOOK(int, truncate, (const char *path, off_t size), (path, size), "truncate", AT_FDCWD, path)
HOOK(int, truncate64, (const char *path, off64_t size), (path, size), "truncate", AT_FDCWD, path)

#define HOOK_RENAME(name, parameters, arguments, base, other) \
    DECLARE(name); int name parameters { \
        GUARD("from", base, path); \
        GUARD("rename", other, to); \
        return REAL(name) arguments; }
HOOK_RENAME(rename, (const char *path, const char *to), (path, to), AT_FDCWD, AT_FDCWD)
HOOK_RENAME(renameat, (int base, const char *path, int other, const char *to), (base, path, other, to), base, other)
HOOK_RENAME(renameat2, (int base, const char *path, int other, const char *to, unsigned flags),
            (base, path, other, to, flags), base, other)

HOOK(int, mkdir, (const char *path, mode_t mode), (path, mode), "mkdir", AT_FDCWD, path)
HOOK(int, mkdirat, (int base, const char *path, mode_t mode), (base, path, mode), "mkdir", base, path)
HOOK(int, link, (const char *path, const char *to), (path, to), "link", AT_FDCWD, to)
HOOK(int, linkat, (int base, const char *path, int other, const char *to, int flags),
     (base, path, other, to, flags), "link", other, to)
HOOK(int, unlink, (const char *path), (path), "unlink", AT_FDCWD, path)
HOOK(int, rmdir, (const char *path), (path), "rmdir", AT_FDCWD, path)
HOOK(int, unlinkat, (int base, const char *path, int flags), (base, path, flags),
     flags & AT_REMOVEDIR ? "rmdir" : "unlink", base, path)

HOOK(int, flock, (int fd, int how), (fd, how), "lock", fd, NULL)

#define HOOK_FCNTL(name) \
    DECLARE(name); int name(int fd, int command, ...) { \
        va_list rest; va_start(rest, command); void *argument = va_arg(rest, void *); va_end(rest); \
        if (command == F_SETLK || command == F_SETLKW || command == F_OFD_SETLK || command == F_OFD_SETLKW) \
            GUARD("lock", fd, NULL); \
        return REAL(name)(fd, command, argument); }
HOOK_FCNTL(fcntl)
HOOK_FCNTL(fcntl64)
