using Microsoft.Extensions.ObjectPool;

namespace GuestMemory.Core;

/// <summary>The large pinned buffers through which memory is copied in bulk, shared by all that do.</summary>
internal static class ImageBuffers
{
    /// <summary>The size of a buffer, in bytes: a multiple of every ordinary page size.</summary>
    public const int Size = 1 << 20;

    private static readonly ObjectPool<byte[]> s_pool = new DefaultObjectPool<byte[]>(new Policy(), maximumRetained: 4);

    public static byte[] Get() => s_pool.Get();

    /// <summary>Gives a buffer back. One that an abandoned read may still write to must not come back.</summary>
    public static void Return(byte[] buffer) => s_pool.Return(buffer);

    private sealed class Policy : PooledObjectPolicy<byte[]>
    {
        public override byte[] Create() => GC.AllocateUninitializedArray<byte>(Size, pinned: true);

        public override bool Return(byte[] obj) => true;
    }
}
