using System.Runtime.CompilerServices;

namespace GuestMemory.Core.Tests;

/// <summary>Every way to access memory, by name: each touches bytes of the first 64 of its first region, and none changes a byte that is 0.</summary>
internal static class EveryAccess
{
    public static (string Name, Action Access)[] To(GuestMemoryMmap memory)
    {
        var region = memory.Regions[0];
        var slice = region.AsVolatileSlice();
        var reference = slice.GetRef<ulong>(8);
        var odd = slice.GetRef<Guid>(3);
        var array = slice.GetArrayRef<uint>(0, 16);
        var atomic = slice.GetAtomicRef<ulong>(16);
        var other = VolatileSlice.FromArray(new byte[64]);
        var buffer = new byte[64];
        var address = new GuestAddress(region.GuestAddress + 8);
        return
        [
            Do(() => slice.Read(0, buffer)),
            Do(() => slice.Write(0, buffer)),
            Do(() => slice.ReadExact(1, buffer.AsSpan(0, 3))),
            Do(() => slice.WriteExact(1, buffer.AsSpan(0, 3))),
            Do(() => slice.ReadObject<byte>(0)),
            Do(() => slice.ReadObject<ulong>(8)),
            Do(() => slice.WriteObject(8, 0UL)),
            Do(() => slice.WriteObject(8, default(Guid))),
            Do(() => slice.Load<uint>(4, AtomicOrdering.SeqCst)),
            Do(() => slice.Store(4, 0u, AtomicOrdering.SeqCst)),
            Do(() => slice.CopyTo(buffer)),
            Do(() => slice.CopyTo(new uint[4])),
            Do(() => slice.CopyFrom<byte>(buffer)),
            Do(() => slice.CopyFrom<uint>([0, 0])),
            Do(() => slice.CopyToVolatileSlice(other)),
            Do(() => other.CopyToVolatileSlice(slice)),
            Do(() => slice.PtrGuard().Dispose()),
            Do(() => slice.Subslice(8, 8).ReadObject<ulong>(0)),
            Do(() => reference.Load()),
            Do(() => reference.Store(0)),
            Do(() => odd.Load()),
            Do(() => odd.Store(default)),
            Do(() => array.Load(3)),
            Do(() => array.Store(3, 0)),
            Do(() => array.CopyTo(new uint[16])),
            Do(() => array.CopyFrom([0])),
            Do(() => array.RefAt(2).Store(0)),
            Do(() => atomic.Load(AtomicOrdering.Relaxed)),
            Do(() => atomic.Store(0, AtomicOrdering.SeqCst)),
            Do(() => atomic.Exchange(0)),
            Do(() => atomic.CompareExchange(0, 0)),
            Do(() => atomic.FetchAdd(0)),
            Do(() => atomic.FetchOr(0)),
            Do(() => atomic.FetchAnd(ulong.MaxValue)),
            Do(() =>
            {
                var source = new SpanSource(buffer);
                slice.ReadVolatileFrom(0, ref source, 8);
            }),
            Do(() =>
            {
                var sink = new SpanSink(buffer);
                slice.WriteVolatileTo(0, ref sink, 8);
            }),
            Do(() =>
            {
                using var zero = File.OpenHandle("/dev/zero");
                var source = new DescriptorStream(zero);
                slice.ReadVolatileFrom(0, ref source, 8);
            }),
            Do(() => region.Read(default, buffer)),
            Do(() => region.Write(default, buffer)),
            Do(() => region.ReadObject<ulong>(default)),
            Do(() => memory.Read(address, buffer)),
            Do(() => memory.Write(address, buffer)),
            Do(() => memory.ReadObject<ulong>(address)),
            Do(() => memory.WriteObject(address, 0UL)),
            Do(() => memory.Load<ulong>(address, AtomicOrdering.Acquire)),
            Do(() => memory.ReadExact(address, buffer.AsMemory(), CancellationToken.None)),
        ];

        static (string, Action) Do(Action access, [CallerArgumentExpression(nameof(access))] string name = "") => (name, access);
    }
}
