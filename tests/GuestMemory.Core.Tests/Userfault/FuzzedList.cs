using System.Text;
using FsCheck;
using FsCheck.Fluent;

namespace GuestMemory.Core.Tests;

/// <summary>A mapping list as a peer may send it: changed here and there, or bytes that never were one, and cut into packets.</summary>
public sealed record FuzzedList(FuzzedList.Entry[] Entries, FuzzedList.Change[] Changes, byte[]? Garbage, FuzzedList.Cut[] Cuts)
{
    private static readonly string[] s_values = ["0", "-1", "4095", "4096", "18446744073709551615", "18446744073709547520", "18446744073709551616", "1e3", "null", "\"\"", "[]", "{}", "true", "9223372036854775808"];

    public enum Kind { Replace, Remove, Repeat, CutOff, Value }

    public static Arbitrary<FuzzedList> Arbitrary()
    {
        var entry = from address in Gen.Choose(1, 1 << 20)
                    from pages in Gen.Choose(1, 63)
                    select new Entry((uint)address, (byte)pages);
        var change = from kind in Gen.Frequency((1, Gen.Constant(Kind.Replace)), (1, Gen.Constant(Kind.Remove)), (1, Gen.Constant(Kind.Repeat)), (1, Gen.Constant(Kind.CutOff)), (2, Gen.Constant(Kind.Value)))
                     from at in Gen.Choose(0, ushort.MaxValue)
                     from count in Gen.Choose(1, 39)
                     from value in Gen.Choose(0, 254)
                     select new Change(kind, (ushort)at, (byte)count, (byte)value);
        var cut = from length in Gen.Frequency((1, Gen.Choose(1, 200)), (3, Gen.Constant((int)ushort.MaxValue)))
                  from descriptors in Gen.Frequency((1, Gen.Choose(0, 3)), (7, Gen.Constant(1)))
                  select new Cut((ushort)length, (byte)descriptors);
        var list = from entries in Gen.Choose(1, 5).SelectMany(count => entry.ArrayOf(count))
                   from changes in Gen.Choose(0, 3).SelectMany(count => change.ArrayOf(count))
                   from garbage in Gen.Frequency((49, Gen.Constant<byte[]?>(null)), (1, Gen.Choose(1, 400).SelectMany(count => Gen.Choose(0, 255).Select(static value => (byte)value).ArrayOf(count)).Select(static bytes => (byte[]?)bytes)))
                   from cuts in cut.ArrayOf(8)
                   select new FuzzedList(entries, changes, garbage, cuts);
        return Arb.From(list, ArbMap.Default.ArbFor<FuzzedList>().Shrinker);
    }

    /// <summary>All that is sent.</summary>
    public byte[] ToBytes()
    {
        if (Garbage is not null) return Garbage;
        var mappings = new GuestRegionUffdMapping[Entries.Length];
        ulong offset = 0;
        for (var i = 0; i < mappings.Length; i++)
        {
            mappings[i] = new GuestRegionUffdMapping(((ulong)i << 32) + (Entries[i].Address * 4096UL), Entries[i].Pages * 4096UL, offset, 4096);
            offset += mappings[i].Size;
        }

        var text = Encoding.UTF8.GetString(UffdMappingList.ToJson(mappings));
        foreach (var change in Changes.TakeWhile(_ => text.Length > 2)) text = change.Apply(text);
        return Encoding.Latin1.GetBytes(text);
    }

    /// <summary>How much of what is left the packet carries, and with how many descriptors.</summary>
    public (int Length, int Descriptors) Packet(int number, int left) =>
        number < Cuts.Length ? (Math.Clamp(Cuts[number].Length, 1, left), Cuts[number].Descriptors % 4) : (left, 1);

    public override string ToString() => $"Entries = {Stress.List(Entries)}, Changes = {Stress.List(Changes)}, Cuts = {Stress.List(Cuts)}, sends {Convert.ToHexString(ToBytes())}";

    /// <summary>An entry of the list, in pages.</summary>
    public readonly record struct Entry(uint Address, byte Pages);

    /// <summary>A packet.</summary>
    public readonly record struct Cut(ushort Length, byte Descriptors);

    /// <summary>What is done to the text.</summary>
    public readonly record struct Change(Kind Kind, ushort Place, byte Count, byte Value)
    {
        public string Apply(string text)
        {
            var at = Place % text.Length;
            var count = Math.Min(Math.Max(1, (int)Count), text.Length - at);
            switch (Kind)
            {
                case Kind.Replace:
                    return text[..at] + (char)(Value + 1) + text[(at + 1)..];
                case Kind.Remove:
                    return text.Remove(at, count);
                case Kind.Repeat:
                    return text.Insert(at, text.Substring(at, count));
                case Kind.CutOff:
                    return text[..at];
                default:
                    // A value becomes another.
                    var colon = text.IndexOf(':', at);
                    var end = colon < 0 ? -1 : text.IndexOfAny([',', '}'], colon);
                    return end > colon ? text[..(colon + 1)] + s_values[Value % s_values.Length] + text[end..] : text;
            }
        }
    }
}
