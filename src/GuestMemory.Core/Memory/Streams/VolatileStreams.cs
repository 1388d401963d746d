namespace GuestMemory.Core;

/// <summary>What the sources and sinks have in common: going on until all is done, and what to say where it cannot be.</summary>
internal static class VolatileStreams
{
    public static void ReadExact<TSource>(ref TSource source, VolatileSlice slice)
        where TSource : IReadVolatile, allows ref struct
    {
        for (ulong done = 0; done < slice.Size;)
        {
            var count = source.ReadVolatile(slice.Offset(done));
            if (count == 0) throw UnexpectedEof();
            done += count;
        }
    }

    public static void WriteAll<TSink>(ref TSink sink, VolatileSlice slice)
        where TSink : IWriteVolatile, allows ref struct
    {
        for (ulong done = 0; done < slice.Size;)
        {
            var count = sink.WriteVolatile(slice.Offset(done));
            if (count == 0) throw WriteZero();
            done += count;
        }
    }

    public static GuestMemoryException UnexpectedEof() => new(GuestMemoryError.UnexpectedEof, "The source ended before the whole buffer was filled.");

    public static GuestMemoryException WriteZero() => new(GuestMemoryError.WriteZero, "The sink took no more before the whole buffer was written.");
}
