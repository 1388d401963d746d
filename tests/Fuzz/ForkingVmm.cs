using System.ComponentModel;
using System.Diagnostics;
using System.Globalization;
using GuestMemory.Core;
using GuestMemory.Core.Interop;

namespace GuestMemory.Fuzz;

/// <summary>A VMM that is a process of its own (fork-peer.c, which the C compiler of this machine compiles) and forks when it is told to. It ends with this process.</summary>
internal sealed class ForkingVmm : Vmm
{
    private const string Source = "fork-peer.c";
    private const byte Fork = (byte)'f';
    private const byte End = (byte)'e';

    private const int StartMilliseconds = 30000;
    private const int TurnMilliseconds = 100;
    private const int MaxTurns = 50;

    private readonly SafeDescriptor _channel;

    private ForkingVmm(SafeDescriptor channel, SafeDescriptor userfaultfd, ulong start) : base(userfaultfd, start) => _channel = channel;

    /// <summary>Starts one; null where there is no C compiler, or this user may not ask for the events of a fork.</summary>
    public static ForkingVmm? TryStart()
    {
        var program = Path.Combine(Path.GetTempPath(), $"guestmemory-fuzz-{Environment.ProcessId}-fork-peer");
        // The VMM waits in it.
        var (near, far) = UnixSocket.CreatePair(nonBlocking: false);
        var isStarted = false;
        try
        {
            if (!TryCompile(program)) return null;
            using (far)
            using (var nothing = File.OpenHandle("/dev/null", FileMode.Open, FileAccess.ReadWrite))
            {
                var none = (int)nothing.DangerousGetHandle();
                _ = Spawn.Start(program, [program, Length.ToString(CultureInfo.InvariantCulture)], [], [none, none, none, far.Number]);
            }

            Span<PollFd> entry = [new PollFd { fd = near.Number, events = Poll.POLLIN }];
            _ = Poll.Wait(entry, StartMilliseconds);
            var address = new byte[sizeof(ulong)];
            var descriptors = new List<SafeDescriptor>();
            if (UnixSocket.TryReceive(near, address, descriptors, out _) != address.Length || descriptors.Count != 1) return null;
            isStarted = true;
            return new ForkingVmm(near, descriptors[0], BitConverter.ToUInt64(address));
        }
        catch (GuestMemoryException)
        {
            return null;
        }
        finally
        {
            far.Dispose();
            if (!isStarted) near.Dispose();
            File.Delete(program);
        }
    }

    /// <summary>Forks, and ends the child when its event was read and dealt with.</summary>
    /// <param name="serve">Called when there are events.</param>
    public void ForkWhile(Action serve)
    {
        Say(Fork);
        var isRead = false;
        try
        {
            isRead = Hears(Fork, serve);
        }
        finally
        {
            // What was not read keeps the process in the fork.
            if (!isRead) _ = Hears(Fork, Drain);
            Say(End);
            Check.True(Hears(End, Drain), "the VMM does not end its child");
        }

        Check.True(isRead, "the event of a fork is not read");
    }

    private static bool TryCompile(string program)
    {
        try
        {
            using var compiler = Process.Start(new ProcessStartInfo("cc", ["-O1", "-x", "c", "-o", program, "-"]) { UseShellExecute = false, RedirectStandardInput = true })!;
            using (var source = typeof(ForkingVmm).Assembly.GetManifestResourceStream(Source)!) source.CopyTo(compiler.StandardInput.BaseStream);
            compiler.StandardInput.Close();
            compiler.WaitForExit();
            return compiler.ExitCode == 0;
        }
        catch (Exception exception) when (exception is Win32Exception or IOException)
        {
            return false;
        }
    }

    private void Say(byte what) => Check.Same(1, (int)UnixSocket.TrySend(_channel, [what], []), "what the VMM was told");

    /// <summary>Whether it has answered before long; events that come meanwhile are read.</summary>
    private bool Hears(byte what, Action read)
    {
        var answer = new byte[1];
        for (var i = 0; i < MaxTurns; i++)
        {
            Span<PollFd> entries = [new PollFd { fd = _channel.Number, events = Poll.POLLIN }, new PollFd { fd = Userfaultfd.Number, events = Poll.POLLIN }];
            _ = Poll.Wait(entries, TurnMilliseconds);
            if (UnixSocket.TryReceive(_channel, answer, [], out _) == 1 && answer[0] == what) return true;
            if ((entries[1].revents & Poll.POLLIN) != 0) read();
        }

        return false;
    }

    private unsafe void Drain()
    {
        var message = default(UffdMsg);
        var knowsNoWait = true;
        if (Core.Interop.Userfaultfd.TryRead(Userfaultfd.Number, &message, 1, ref knowsNoWait) == 1 && message.@event == Core.Interop.Userfaultfd.UFFD_EVENT_FORK)
            new SafeDescriptor((int)message.fork_ufd).Dispose();
    }
}
