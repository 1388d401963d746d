using Microsoft.Win32.SafeHandles;

namespace GuestMemory.Core.Tests;

/// <summary>A list of touches that processes share: one notes, its successor goes on, another saves.</summary>
public sealed class RecorderTests : IDisposable
{
    private const ulong Pages = 32;
    private const ulong Length = Pages * 4096;

    private readonly TestFolder _folder = new();

    public void Dispose() => _folder.Dispose();

    [Fact]
    public void ASuccessorGoesOnAndAnotherSaves()
    {
        using var list = UffdRecorder.CreateList(Length);
        using var saving = Open(list, _folder["record"]).Begin();
        Assert.Empty(Saved());
        // Both stand ready before the first notes anything.
        using var first = Open(list, path: null);
        using var second = Open(list, path: null);
        Touch(first, 9, 2, 9);
        Touch(second, 2, 7, 9);
        Assert.Null(second.TrySave());
        Assert.Null(saving.TrySave());
        Assert.Equal([9, 2, 7], Saved());

        // After another supervisor nothing is left but the file.
        using var fresh = UffdRecorder.CreateList(Length);
        using var next = Open(fresh, _folder["record"]).GoOn();
        using var third = Open(fresh, path: null);
        Touch(third, 7, 4);
        Assert.Null(next.TrySave());
        Assert.Equal([9, 2, 7, 4], Saved());
    }

    /// <summary>A worker that a VM controls may write anything into the list: the supervisor saves no more than the list can hold, and does not fail.</summary>
    [Theory]
    [InlineData(int.MaxValue)]
    [InlineData(int.MinValue)]
    [InlineData((int)Pages + 1)]
    public void ASpoiltListDoesNotFailTheSupervisor(int count)
    {
        using var list = UffdRecorder.CreateList(Length);
        using var saving = Open(list, _folder["record"]).Begin();
        using var noting = Open(list, path: null);
        Touch(noting, 3);
        using (var file = new SafeFileHandle(list.Number, ownsHandle: false)) RandomAccess.Write(file, [.. BitConverter.GetBytes(count), 0, 0, 0, 0, 255, 255, 255, 255], 0);
        Touch(noting, 5);
        Assert.Null(saving.TrySave());
        Assert.InRange(new FileInfo(_folder["record"]).Length, 32, 32 + (4 * (long)Pages));
        using var successor = Open(list, path: null);
        Touch(successor, 6);
    }

    [Fact]
    public void AListOfAnotherImageIsRefused()
    {
        using var list = UffdRecorder.CreateList(Length * 1024);
        Assert.Equal(GuestMemoryError.InvalidRecord, Assert.Throws<GuestMemoryException>(() => Open(list, path: null)).Error);
        using var file = File.OpenHandle(_folder.WriteImage("image", 1));
        using var other = new SafeDescriptor(Fcntl.Duplicate((int)file.DangerousGetHandle()));
        Assert.Equal(GuestMemoryError.InvalidRecord, Assert.Throws<GuestMemoryException>(() => Open(other, path: null)).Error);
    }

    private static UffdRecorder Open(SafeDescriptor list, string? path) => new(new SafeDescriptor(Fcntl.Duplicate(list.Number)), Length, path);

    private static void Touch(UffdRecorder recorder, params ulong[] pages)
    {
        foreach (var page in pages) recorder.Touch(page * 4096, 4096);
    }

    private uint[] Saved() => TouchRecord.Load(_folder["record"], Length);
}
