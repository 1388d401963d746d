using System.Runtime.InteropServices;

namespace GuestMemory.Core.Interop;

/// <summary>Starts programs with exactly the descriptors they are meant to have (<c>posix_spawn(3)</c>).</summary>
internal static unsafe partial class Spawn
{
    public const short POSIX_SPAWN_SETSIGDEF = 0x04;
    public const short POSIX_SPAWN_SETSIGMASK = 0x08;
    public const short POSIX_SPAWN_SETSID = 0x80;

    // posix_spawn_file_actions_t, posix_spawnattr_t and sigset_t are opaque; the C libraries here need at most 336 bytes.
    private const int Opaque = 1024;

    /// <summary>
    /// Starts a program with default signals and the given descriptors as its 0, 1, 2 and so on. The program gets no other
    /// descriptor that is close-on-exec, as all of this library are; each number must be above the count of them. Returns the process id.
    /// </summary>
    /// <param name="program">Its path.</param>
    /// <param name="arguments">Its arguments, its name first.</param>
    /// <param name="environment">Its environment, NAME=VALUE each.</param>
    /// <param name="descriptors">Its descriptors.</param>
    /// <param name="inOwnSession">Whether it begins a session, and with it a process group (<see cref="ProcessGroup"/>), of its own number.</param>
    /// <exception cref="SyscallException">The program could not be started.</exception>
    public static int Start(string program, IReadOnlyList<string> arguments, IReadOnlyList<string> environment, ReadOnlySpan<int> descriptors, bool inOwnSession = false)
    {
        var actions = stackalloc byte[Opaque];
        var attributes = stackalloc byte[Opaque];
        var signals = stackalloc byte[Opaque];
        nint[]? argv = null, envp = null;
        _ = posix_spawn_file_actions_init(actions);
        _ = posix_spawnattr_init(attributes);
        try
        {
            _ = sigemptyset(signals);
            _ = posix_spawnattr_setsigmask(attributes, signals);
            _ = sigfillset(signals);
            _ = posix_spawnattr_setsigdefault(attributes, signals);
            _ = posix_spawnattr_setflags(attributes, (short)(POSIX_SPAWN_SETSIGDEF | POSIX_SPAWN_SETSIGMASK | (inOwnSession ? POSIX_SPAWN_SETSID : 0)));
            for (var i = 0; i < descriptors.Length; i++) _ = posix_spawn_file_actions_adddup2(actions, descriptors[i], i);
            argv = Strings(arguments);
            envp = Strings(environment);
            int process;
            int error;
            fixed (nint* arg = argv, env = envp) error = posix_spawn(&process, program, actions, attributes, arg, env);
            return error == 0 ? process : throw new SyscallException("posix_spawn", error, $"Starting {program}");
        }
        finally
        {
            Free(argv);
            Free(envp);
            _ = posix_spawnattr_destroy(attributes);
            _ = posix_spawn_file_actions_destroy(actions);
        }
    }

    private static nint[] Strings(IReadOnlyList<string> texts)
    {
        var pointers = new nint[texts.Count + 1];
        for (var i = 0; i < texts.Count; i++) pointers[i] = Marshal.StringToCoTaskMemUTF8(texts[i]);
        return pointers;
    }

    private static void Free(nint[]? pointers)
    {
        foreach (var pointer in pointers ?? []) Marshal.FreeCoTaskMem(pointer);
    }

    [LibraryImport("libc", StringMarshalling = StringMarshalling.Utf8)]
    private static partial int posix_spawn(int* pid, string path, void* file_actions, void* attrp, nint* argv, nint* envp);

    [LibraryImport("libc")]
    private static partial int posix_spawn_file_actions_init(void* file_actions);

    [LibraryImport("libc")]
    private static partial int posix_spawn_file_actions_adddup2(void* file_actions, int fildes, int newfildes);

    [LibraryImport("libc")]
    private static partial int posix_spawn_file_actions_destroy(void* file_actions);

    [LibraryImport("libc")]
    private static partial int posix_spawnattr_init(void* attr);

    [LibraryImport("libc")]
    private static partial int posix_spawnattr_setflags(void* attr, short flags);

    [LibraryImport("libc")]
    private static partial int posix_spawnattr_setsigmask(void* attr, void* sigmask);

    [LibraryImport("libc")]
    private static partial int posix_spawnattr_setsigdefault(void* attr, void* sigdefault);

    [LibraryImport("libc")]
    private static partial int posix_spawnattr_destroy(void* attr);

    [LibraryImport("libc")]
    private static partial int sigemptyset(void* set);

    [LibraryImport("libc")]
    private static partial int sigfillset(void* set);
}
