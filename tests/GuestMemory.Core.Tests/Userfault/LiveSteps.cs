using System.Buffers.Binary;

namespace GuestMemory.Core.Tests;

/// <summary>What memory must be at one instant into which two writers do the steps of live-peer.c.</summary>
internal sealed class LiveSteps
{
    private const int Writers = 2;
    private readonly int _pages;
    private readonly ulong[] _steps = new ulong[Writers];

    // Of each page: its last step, whether that gave it back, and whether any did.
    private readonly ulong[] _last;
    private readonly bool[] _isRemoved;
    private readonly bool[] _isZero;

    public LiveSteps(int pages)
    {
        _pages = pages;
        (_last, _isRemoved, _isZero) = (new ulong[pages], new bool[pages], new bool[pages]);
    }

    /// <summary>How many steps a writer has done whose word this is: page 0 is the image's before the first step.</summary>
    public static ulong Of(ulong word) => word == Number(0) ? 0 : word;

    /// <summary>Checks that a memory is that of one instant, not before those that were checked earlier; the steps that are complete in it.</summary>
    public ulong[] AssertInstant(ReadOnlySpan<byte> image)
    {
        Assert.Equal(_pages * 4096, image.Length);
        var steps = new ulong[Writers];
        for (var writer = 0; writer < Writers; writer++)
        {
            steps[writer] = Of(Word(image, 0, writer * 64 / 8));
            Assert.True(steps[writer] >= _steps[writer], $"writer {writer}: step {steps[writer]} after {_steps[writer]}");
            while (_steps[writer] < steps[writer]) Step(writer, ++_steps[writer]);
        }

        for (var page = 1; page < _pages; page++)
        {
            var writer = page & 1;
            if (page == 1 || PageOf(writer, steps[writer] + 1, out _) != page) AssertPage(image, page, writer, steps);
            // The step that may be under way: any part of it may be done, and nothing else.
            else if (Word(image, page, 0) is var first && first != steps[writer] + 1 && first != 0) AssertPage(image, page, writer, steps);
        }

        return steps;
    }

    private void AssertPage(ReadOnlySpan<byte> image, int page, int writer, ulong[] steps)
    {
        var fill = _isZero[page] ? 0 : Number(page);
        var isWritten = _last[page] > 0 && !_isRemoved[page];
        var (first, last) = isWritten ? (_last[page], _last[page]) : (fill, fill);
        Assert.True((first, fill, last) == (Word(image, page, 0), Word(image, page, 256), Word(image, page, 511)),
            $"page {page} of writer {writer} at step {steps[writer]}: {Word(image, page, 0)} {Word(image, page, 256):x} {Word(image, page, 511)} for {first} {fill:x} {last}");
        var seen = Word(image, page, 1);
        // It had seen what the other one had done: that is in the memory too.
        if (isWritten) Assert.True(Of(seen) <= steps[1 - writer], $"page {page} of writer {writer} at step {first} has seen step {seen} of the other, which is at {steps[1 - writer]}");
        else Assert.Equal(fill, seen);
    }

    private void Step(int writer, ulong step)
    {
        var page = PageOf(writer, step, out var removes);
        _last[page] = step;
        _isRemoved[page] = removes;
        _isZero[page] |= removes;
    }

    private int PageOf(int writer, ulong step, out bool removes)
    {
        var hash = (2 * step) + (ulong)writer;
        unchecked
        {
            hash += 0x9e3779b97f4a7c15;
            hash = (hash ^ (hash >> 30)) * 0xbf58476d1ce4e5b9;
            hash = (hash ^ (hash >> 27)) * 0x94d049bb133111eb;
        }

        hash ^= hash >> 31;
        removes = (hash >> 32) % 16 == 0;
        return (int)(2 + (2 * (hash % (((ulong)_pages / 2) - 1))) + (ulong)writer);
    }

    private static ulong Word(ReadOnlySpan<byte> image, int page, int word) => BinaryPrimitives.ReadUInt64LittleEndian(image[((page * 4096) + (word * 8))..]);

    // What TestFolder.Fill writes.
    private static ulong Number(int page) => unchecked((ulong)(page + 1) * 0x9E3779B97F4A7C15);
}
