using System.Runtime.InteropServices;
using Microsoft.Extensions.ObjectPool;

namespace GuestMemory.Core.Images;

/// <summary>The large pinned buffers through which memory is copied in bulk, shared by all that do.</summary>
internal static class ImageBuffers
{
    /// <summary>The size of a buffer, in bytes: a multiple of every ordinary page size.</summary>
    public const int Size = 4 << 20;

    private static readonly ObjectPool<byte[]> s_pool = new DefaultObjectPool<byte[]>(new Policy(), maximumRetained: 4);

    public static byte[] Get() => s_pool.Get();

    /// <summary>Gives a buffer back. One that an abandoned read may still write to must not come back.</summary>
    public static void Return(byte[] buffer) => s_pool.Return(buffer);

    /// <summary>The part to use: the kernel copies to an address that is no multiple of 16, as an array's may be, three times slower.</summary>
    public static Memory<byte> Aligned(byte[] buffer)
    {
        var past = (ulong)Marshal.UnsafeAddrOfPinnedArrayElement(buffer, 0) % HostPage.Size;
        return buffer.AsMemory(past == 0 ? 0 : (int)(HostPage.Size - past), Size);
    }

    private sealed class Policy : PooledObjectPolicy<byte[]>
    {
        public override byte[] Create() => GC.AllocateUninitializedArray<byte>(Size + (int)HostPage.Size, pinned: true);

        public override bool Return(byte[] obj) => true;
    }
}
