using System.Reflection;
using System.Runtime.InteropServices;

namespace GuestMemory.Core.Tests;

/// <summary>The memory that a VM's state lies in, which programs of different versions give each other.</summary>
public sealed class VmStateTests
{
    /// <summary>Where this fails, something lies in another place than before: <see cref="UffdVmState.Version"/> must grow, and then this text change.</summary>
    [Fact]
    public void TheVersionIsThatOfTheLayout()
    {
        var numbers = typeof(UffdVmState).GetFields(BindingFlags.Static | BindingFlags.Public | BindingFlags.NonPublic)
            .Where(field => field.IsLiteral && field.Name != "Magic" && !field.Name.EndsWith("OfBlock", StringComparison.Ordinal)).Select(field => $"{field.Name} {field.GetRawConstantValue()}");
        var fields = new[] { typeof(UffdCounters), typeof(UffdVmSync) }
            .SelectMany(type => type.GetFields(BindingFlags.Instance | BindingFlags.Public).Select(field => $"{field.Name} {Marshal.OffsetOf(type, field.Name)}"));
        Assert.Equal(
            """
            Batch 64, Version 1, CountersOffset 2048, SyncOffset 2432, HeaderOffset 2544, FoundOffset 2560, FoundCapacity 64, HistogramOffset 4096, MovesOffset 12288, BitsOffset 16384, HeaderSize 16, OpeningBits 24
            Copied 0, Zero 8, Present 16, Continued 24, WriteProtected 32, Deferred 40, Poisoned 48, Failed 56, Removes 64, SourceErrors 72, QueueDepth 80, FaultBytes 88, WindowBytes 96, StartedAt 104, FirstPageAt 112, FillBytes 120, FillZeroBytes 128, FillErrors 136, FillDone 144, Reads 0, IsTracked 4, Opening 8
            Histogram 977, state of 100 pages 20480
            """,
            $"{string.Join(", ", numbers)}\n{string.Join(", ", fields)}\nHistogram {LatencyHistogram.Words}, state of 100 pages {UffdVmState.SizeOf(100)}");
    }

    [Fact]
    public void AStateWithoutALayoutNumberOrWithAnotherIsRefused()
    {
        var size = (long)UffdVmState.SizeOf(16);
        using var file = Memfd.CreateSealed("uffd-state", size, 0);
        Assert.Equal(GuestMemoryError.StateMismatch, Assert.Throws<GuestMemoryException>(() => new UffdVmState(16, file)).Error);
        new UffdVmState(16, file, isNew: true).Dispose();
        new UffdVmState(16, file).Dispose();
        using var handle = new Microsoft.Win32.SafeHandles.SafeFileHandle(file.Number, ownsHandle: false);
        RandomAccess.Write(handle, [(byte)(UffdVmState.Version + 1)], UffdVmState.HeaderOffset + 8);
        var error = Assert.Throws<GuestMemoryException>(() => new UffdVmState(16, file));
        Assert.Equal(GuestMemoryError.StateMismatch, error.Error);
        Assert.Contains($"has layout {UffdVmState.Version + 1}, and this program knows layout {UffdVmState.Version}", error.Message, StringComparison.Ordinal);
        // Also one that is shorter than this program's.
        using var small = Memfd.CreateSealed("uffd-state", 4096, 0);
        Assert.Equal(GuestMemoryError.StateMismatch, Assert.Throws<GuestMemoryException>(() => new UffdVmState(16, small)).Error);
    }
}
