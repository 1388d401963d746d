namespace GuestMemory.Core;

/// <summary>A span over guest memory to read it; see <see cref="SpanLease{T}"/>.</summary>
/// <typeparam name="T">Plain data.</typeparam>
public readonly ref struct ReadOnlySpanLease<T> : IDisposable
    where T : unmanaged
{
    private readonly SpanLease<T> _lease;

    internal ReadOnlySpanLease(SpanLease<T> lease) => _lease = lease;

    /// <summary>The memory; empty where there is none to be had as a span.</summary>
    public ReadOnlySpan<T> Span => _lease.Span;

    /// <summary>The first value of the span.</summary>
    /// <exception cref="IndexOutOfRangeException">The span is empty.</exception>
    public ref readonly T Value => ref _lease.Value;

    /// <summary>Lets the memory go.</summary>
    public void Dispose() => _lease.Dispose();
}
