using System.Collections;
using System.Collections.Specialized;
using System.Runtime.InteropServices;
using System.Text.Json;

namespace GuestMemory.Core.VmControl;

/// <content>
/// The request as its wire JSON shows it, <c>{"Variant": content}</c>, which cannot be changed. PowerShell writes a dictionary as it
/// stands, and any other object by its properties: so ConvertTo-Json gives the wire's text.
/// </content>
public abstract partial record VmMemoryRequest : IDictionary
{
    int ICollection.Count => 1;

    bool ICollection.IsSynchronized => false;

    object ICollection.SyncRoot => this;

    ICollection IDictionary.Keys => View().Keys;

    ICollection IDictionary.Values => View().Values;

    bool IDictionary.IsFixedSize => true;

    bool IDictionary.IsReadOnly => true;

    object? IDictionary.this[object key]
    {
        get => ((IDictionary)this).Contains(key) ? View()[key] : null;
        set => throw Fixed();
    }

    bool IDictionary.Contains(object key) => key is string name && name == GetType().Name;

    IDictionaryEnumerator IDictionary.GetEnumerator() => View().GetEnumerator();

    IEnumerator IEnumerable.GetEnumerator() => View().GetEnumerator();

    void ICollection.CopyTo(Array array, int index) => ((ICollection)View()).CopyTo(array, index);

    void IDictionary.Add(object key, object? value) => throw Fixed();

    void IDictionary.Clear() => throw Fixed();

    void IDictionary.Remove(object key) => throw Fixed();

    private static NotSupportedException Fixed() => new("A request cannot be changed; make another one.");

    private OrderedDictionary View()
    {
        using var json = JsonDocument.Parse(ToJson(new List<SafeHandle>()));
        return (OrderedDictionary)View(json.RootElement)!;
    }

    private static object? View(JsonElement element) => element.ValueKind switch
    {
        JsonValueKind.Object => ViewObject(element),
        JsonValueKind.Array => element.EnumerateArray().Select(View).ToArray(),
        JsonValueKind.String => element.GetString(),
        JsonValueKind.Number => element.GetUInt64(),
        JsonValueKind.True => true,
        JsonValueKind.False => false,
        _ => null,
    };

    private static OrderedDictionary ViewObject(JsonElement element)
    {
        var view = new OrderedDictionary(StringComparer.Ordinal);
        foreach (var member in element.EnumerateObject()) view.Add(member.Name, View(member.Value));
        return view;
    }
}
