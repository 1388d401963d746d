using System.Collections;
using System.Management.Automation;
using GuestMemory.Core;
using GuestMemory.Core.Userfault;

namespace GuestMemory.PowerShell.Commands;

/// <summary>Images as they are typed: @{ web = 'web.mem'; db = @{ MemoryPath = 'db.mem'; Layer = 'db.diff' } }.</summary>
internal static class UffdImageValues
{
    /// <param name="images">The images by their names.</param>
    /// <param name="directory">Where those have their sockets of which nothing else is said; null where that is said of each.</param>
    /// <param name="resolve">Makes a path of what was typed.</param>
    /// <exception cref="GuestMemoryException">ValueNotSupported.</exception>
    public static IReadOnlyList<UffdImageOptions> Parse(IDictionary images, string? directory, Func<string, string> resolve)
    {
        var parsed = new List<UffdImageOptions>(images.Count);
        foreach (DictionaryEntry image in images) parsed.Add(Parse(Text(image.Key), Plain(image.Value), directory, resolve));
        // A hashtable has no order.
        if (images is Hashtable) parsed.Sort(static (one, other) => string.Compare(one.Name, other.Name, StringComparison.OrdinalIgnoreCase));
        return parsed;
    }

    private static UffdImageOptions Parse(string name, object? value, string? directory, Func<string, string> resolve)
    {
        string? memory = null, socket = null, record = null, replay = null;
        IReadOnlyList<string> layers = [];
        if (value is IDictionary parts)
        {
            foreach (DictionaryEntry part in parts)
            {
                var content = Plain(part.Value);
                switch (Text(part.Key).ToUpperInvariant())
                {
                    case "MEMORYPATH":
                        memory = resolve(Text(content));
                        break;
                    case "SOCKETPATH":
                        socket = resolve(Text(content));
                        break;
                    case "LAYER":
                        layers = [.. content is IEnumerable many and not string ? many.Cast<object?>().Select(layer => resolve(Text(Plain(layer)))) : [resolve(Text(content))]];
                        break;
                    case "RECORDPATH":
                        record = resolve(Text(content));
                        break;
                    case "REPLAYPATH":
                        replay = resolve(Text(content));
                        break;
                    default:
                        throw Refuse(name, $"'{Text(part.Key)}' is nothing that an image has: MemoryPath, SocketPath, Layer, RecordPath and ReplayPath are.");
                }
            }
        }
        else
        {
            memory = resolve(Text(value));
        }

        if (memory is null) throw Refuse(name, "it has no MemoryPath.");
        socket ??= directory is null ? throw Refuse(name, "it has no socket: give -SocketDirectory, or a SocketPath with the image.") : Path.Combine(directory, name + ".sock");
        return new UffdImageOptions { Name = name, SocketPath = socket, MemoryPath = memory, LayerPaths = layers, RecordPath = record, ReplayPath = replay };
    }

    private static object? Plain(object? value) => value is PSObject { BaseObject: var inner } ? inner : value;

    private static string Text(object? value) => Plain(value) switch
    {
        FileSystemInfo file => file.FullName,
        var other => LanguagePrimitives.ConvertTo<string>(other),
    };

    private static GuestMemoryException Refuse(string name, string why) => new(GuestMemoryError.ValueNotSupported, $"The image '{name}' cannot be served: {why}");
}
