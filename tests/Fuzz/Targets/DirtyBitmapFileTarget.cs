using System.Buffers.Binary;
using GuestMemory.Core;
using GuestMemory.Core.Images;

namespace GuestMemory.Fuzz.Targets;

/// <summary>The file of a dirty bitmap. Where the first byte is '1' its checksum is put right first: nothing that is changed at random would pass it.</summary>
internal static class DirtyBitmapFileTarget
{
    private const int HeaderSize = 32;
    private const int ChecksumAt = 20;

    public static void Run(byte[] input)
    {
        if (input.Length < 1) return;
        var content = input[1..];
        if (input[0] == '1' && content.Length >= HeaderSize) BinaryPrimitives.WriteUInt32LittleEndian(content.AsSpan(ChecksumAt), ChunkedImage.Crc(content.AsSpan(HeaderSize)));
        using var files = new Files();
        if (!Check.TryParse(() => DirtyBitmapFile.Read(files.Write(content)), out var bitmap, GuestMemoryError.InvalidLog)) return;
        DirtyLogTarget.CheckBitmap(bitmap);
        var path = files.Next();
        DirtyBitmapFile.Write(bitmap, path, overwrite: false);
        Check.SameItems<byte>(content, File.ReadAllBytes(path), "the file, written again");
    }
}
