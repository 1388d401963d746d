using System.Globalization;
using System.Runtime.CompilerServices;
using System.Text;
using GuestMemory.Core.Interop;
using Microsoft.Win32.SafeHandles;

namespace GuestMemory.UffdHost;

/// <summary>The standard error, which is the log: a file, the journal, or what the caller chose.</summary>
internal static class Log
{
    private const int StandardError = 2;
    private const int MaxFile = 1 << 20;

    // It is this process's as long as it lives, and closed with it.
    private static readonly SafeFileHandle s_file = new(StandardError, ownsHandle: false);
    private static readonly Lazy<LineLogger> s_lines = new(static () => new LineLogger(Write, IsJournal(), TimeProvider.System));

    /// <summary>What the processes of a handler log. Before it is used first the standard error must be what it stays.</summary>
    public static LineLogger Lines => s_lines.Value;

    /// <summary>
    /// Whether the standard error is a file of this handler alone: then no more than the newest MiB is kept. Of what the caller chose the caller takes care.
    /// </summary>
    public static bool IsOwnFile { get; set; }

    /// <summary>Loads what logging needs: later no descriptor may be left to open a library with.</summary>
    public static void Prepare()
    {
        _ = s_lines.Value;
        RuntimeHelpers.RunClassConstructor(typeof(HandlerEvents).TypeHandle);
    }

    private static unsafe void Write(string line)
    {
        // Not by the console, which looks for a terminal first: a worker opens no file. A disk that is full is no reason to leave the VMs.
        var bytes = Encoding.UTF8.GetBytes(line);
        fixed (byte* first = bytes) _ = Descriptor.TryWrite(StandardError, first, (nuint)bytes.Length);
        if (IsOwnFile) Trim(s_file);
    }

    /// <summary>
    /// Drops the older half where the file is full. Workers have the same open file, which each of them appends to: it stays that file. What one of
    /// them writes in this moment may be lost.
    /// </summary>
    internal static void Trim(SafeFileHandle file)
    {
        try
        {
            var length = RandomAccess.GetLength(file);
            if (length <= MaxFile) return;
            var newest = new byte[MaxFile / 2];
            var count = RandomAccess.Read(file, newest, length - newest.Length);
            var first = newest.AsSpan(0, count).IndexOf((byte)'\n') + 1;
            RandomAccess.SetLength(file, 0);
            // Appended, wherever it is said to go.
            RandomAccess.Write(file, newest.AsSpan(first, count - first), 0);
        }
        catch (Exception exception) when (exception is IOException or UnauthorizedAccessException or NotSupportedException)
        {
            // It is no file after all, or the disk is full.
        }
    }

    /// <summary>Whether the standard error goes to the journal: <c>$JOURNAL_STREAM</c> says which device and inode that is (<c>systemd.exec(5)</c>).</summary>
    private static bool IsJournal()
    {
        try
        {
            var status = FileStatus.Get(s_file);
            return Environment.GetEnvironmentVariable("JOURNAL_STREAM") == string.Create(CultureInfo.InvariantCulture, $"{Device(status)}:{status.stx_ino}");
        }
        catch (SyscallException)
        {
            return false;
        }
    }

    /// <summary>A device's number as <c>stat(2)</c> has it, <c>makedev(3)</c>.</summary>
    private static ulong Device(Statx status)
    {
        ulong major = status.stx_dev_major, minor = status.stx_dev_minor;
        return ((major & 0xfffff000) << 32) | ((major & 0xfff) << 8) | ((minor & 0xffffff00) << 12) | (minor & 0xff);
    }
}
