namespace GuestMemory.Core.Tests;

/// <content>What has happened when the handler says that it is ready.</content>
public sealed partial class SystemdTests
{
    /// <summary>What kills the handler whenever it is ready must not keep a fault waiting over many restarts.</summary>
    [UffdFact]
    public void FaultsThatWaitedAreAnsweredWhenItIsReady()
    {
        const int Vms = 8;
        using var manager = new ServiceManager(_folder["notify"]);
        var memories = StartAndDie(manager, Vms);
        var touching = Touch(manager, memories);
        var second = StartReady(manager);
        // At once, and all of them.
        foreach (var process in Children(second).Append(second)) Signal(process, 9);
        ServiceManager.Kill(second);
        Assert.All(memories, static memory => Assert.True(IsPresent(memory, 8), "the page was missing when the handler was ready"));
        Assert.True(Task.WaitAll(touching, Host.Patience));
    }

    /// <summary>Where workers die of a VM, or its first fault takes long, the handler is ready all the same.</summary>
    [UffdTheory]
    [InlineData("die-after-read=1")]
    [InlineData("hold-counts=HOLD")]
    public void AVmThatCannotBeServedDoesNotKeepItFromBeingReady(string debug)
    {
        using var manager = new ServiceManager(_folder["notify"]);
        var memories = StartAndDie(manager, 1);
        var touching = Touch(manager, memories);
        File.WriteAllText(_folder["hold"], "held");
        manager.Debug = debug.Replace("HOLD", _folder["hold"], StringComparison.Ordinal);
        var second = StartReady(manager);
        Assert.Equal(1, Host.OnlyHandler().ConnectionCount);
        ServiceManager.Kill(second);
        manager.Debug = null;
        manager.Told.Clear();
        StartReady(manager);
        Assert.True(Task.WaitAll(touching, Host.Patience));
    }

    /// <summary>A handler under the manager that was killed when each of several VMs had touched its first page.</summary>
    private GuestMemoryMmap[] StartAndDie(ServiceManager manager, int vms)
    {
        _folder.WriteImage("image", 64);
        var first = StartReady(manager);
        var memories = new GuestMemoryMmap[vms];
        for (var i = 0; i < vms; i++)
        {
            memories[i] = Memory(64);
            UffdRegistration.Connect(_folder["h.sock"], memories[i]);
            TestFolder.AssertPages(memories[i], 0, 1);
        }

        Assert.True(manager.WasTold(_ => manager.Kept.Count(static item => item.Name.EndsWith("-list", StringComparison.Ordinal)) == vms), manager.KeptNames);
        ServiceManager.Kill(first);
        manager.Told.Clear();
        return memories;
    }

    /// <summary>Has every VM touch its page 8, and waits until each waits for it.</summary>
    private static Task[] Touch(ServiceManager manager, GuestMemoryMmap[] memories)
    {
        Task[] touching = [.. memories.Select(static memory => Task.Factory.StartNew(() => TestFolder.AssertPages(memory, 8, 1), CancellationToken.None, TaskCreationOptions.LongRunning, TaskScheduler.Default))];
        Host.Until(() => manager.Kept.Count(static item => item.Name.EndsWith("-uffd", StringComparison.Ordinal) && IsReadable(item.Descriptor)) == memories.Length);
        return touching;
    }

    private static bool IsReadable(SafeDescriptor descriptor)
    {
        Span<PollFd> entry = [new PollFd { fd = descriptor.Number, events = Poll.POLLIN }];
        return Poll.Wait(entry, 0) > 0 && (entry[0].revents & Poll.POLLIN) != 0;
    }

    /// <summary>Whether a page of a memory of this process is there, which a touch would wait for.</summary>
    private static bool IsPresent(GuestMemoryMmap memory, int page)
    {
        using var pagemap = File.OpenHandle("/proc/self/pagemap");
        var entry = new byte[sizeof(ulong)];
        var address = memory.Regions[0].GetHostAddress(default) + ((ulong)page * 4096);
        Assert.Equal(entry.Length, RandomAccess.Read(pagemap, entry, (long)(address / 4096 * sizeof(ulong))));
        // Present or swapped out.
        return BitConverter.ToUInt64(entry) >> 62 != 0;
    }
}
