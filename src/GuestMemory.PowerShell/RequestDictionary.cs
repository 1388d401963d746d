using System.Collections.ObjectModel;
using System.Collections.Specialized;
using System.Text.Json;
using GuestMemory.Core.VmControl;

namespace GuestMemory.PowerShell;

/// <summary>
/// A request as PowerShell shows it: a read-only dictionary of its wire JSON, <c>{"Variant": content}</c>. ConvertTo-Json writes a
/// dictionary by its entries and any other object by its properties, so it gives the wire's text for this one.
/// </summary>
public sealed class RequestDictionary : ReadOnlyDictionary<string, object?>
{
    /// <param name="request">The request; its open files stay with it.</param>
    public RequestDictionary(VmMemoryRequest request)
        : base(Entries(request)) => Request = request;

    /// <summary>The request itself, with its open files.</summary>
    public VmMemoryRequest Request { get; }

    private static Dictionary<string, object?> Entries(VmMemoryRequest request)
    {
        ArgumentNullException.ThrowIfNull(request);
        using var json = JsonDocument.Parse(request.ToJson([]));
        var variant = json.RootElement.EnumerateObject().Single();
        return new Dictionary<string, object?>(StringComparer.Ordinal) { [variant.Name] = Value(variant.Value) };
    }

    private static object? Value(JsonElement element) => element.ValueKind switch
    {
        JsonValueKind.Object => Members(element),
        JsonValueKind.Array => element.EnumerateArray().Select(Value).ToArray(),
        JsonValueKind.String => element.GetString(),
        JsonValueKind.Number => element.GetUInt64(),
        JsonValueKind.True => true,
        JsonValueKind.False => false,
        _ => null,
    };

    private static OrderedDictionary Members(JsonElement element)
    {
        var members = new OrderedDictionary(StringComparer.Ordinal);
        foreach (var member in element.EnumerateObject()) members.Add(member.Name, Value(member.Value));
        return members;
    }
}
