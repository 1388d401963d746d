namespace GuestMemory.Core;

/// <summary>
/// A span over guest memory. Until it is disposed of the memory stays mapped, also where its region is released meanwhile, and is not
/// handed over to a page-fault handler. Others may write what it shows; what is written through it is to be marked by hand. Dispose of
/// it once, and use neither the span nor a reference from it afterwards.
/// </summary>
/// <typeparam name="T">Plain data.</typeparam>
public readonly unsafe ref struct SpanLease<T> : IDisposable
    where T : unmanaged
{
    private readonly VolatileMemory? _memory;
    private readonly VolatileMemory.AccessPin _pin;

    private SpanLease(VolatileMemory memory, byte* address, int count)
    {
        _pin = VolatileMemory.AccessPin.Begin(memory, memory.OffsetOf(address), (ulong)count * (ulong)sizeof(T), MemoryProtection.ReadWrite, brief: false);
        _memory = memory;
        Span = new Span<T>(_pin.Address, count);
    }

    /// <summary>The memory; empty where there is none to be had as a span.</summary>
    public Span<T> Span { get; }

    /// <summary>The first value of the span.</summary>
    /// <exception cref="IndexOutOfRangeException">The span is empty.</exception>
    public ref T Value => ref Span[0];

    /// <summary>Lets the memory go.</summary>
    public void Dispose()
    {
        if (_memory is null) return;
        _pin.Dispose();
        _memory.EndLease();
    }

    /// <summary>A lease of memory that is direct; an empty one where it is not.</summary>
    internal static SpanLease<T> TryBegin(VolatileMemory memory, byte* address, int count)
    {
        if (!memory.TryBeginLease()) return default;
        try
        {
            return new SpanLease<T>(memory, address, count);
        }
        catch
        {
            memory.EndLease();
            throw;
        }
    }
}
