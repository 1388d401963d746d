using System.Management.Automation;

namespace GuestMemory.PowerShell.Binding;

/// <summary>A parameter that takes an object, or text that names it; several of both, and names with wildcards, where there may be many.</summary>
/// <typeparam name="T">The type of the object.</typeparam>
[AttributeUsage(AttributeTargets.Property | AttributeTargets.Field)]
public abstract class LookupAttribute<T> : ArgumentTransformationAttribute
    where T : class
{
    /// <summary>Whether the parameter takes an array.</summary>
    public bool Many { get; set; }

    /// <inheritdoc/>
    public sealed override object Transform(EngineIntrinsics engineIntrinsics, object inputData) => DescriptorAttribute.Guard(() =>
    {
        if (Many) return Several(inputData);
        if (TextOf(inputData) is not { } text) return inputData;
        return Find(text) switch
        {
            [var one] => one,
            [] => throw new FormatException(WhyNone(text)),
            var several => throw new FormatException(WhichOf(text, several)),
        };
    });

    /// <summary>The text that names an object; null where the value is none.</summary>
    protected virtual string? Text(object value) => value as string;

    /// <summary>The objects that a text names.</summary>
    protected abstract T[] Find(string text);

    /// <summary>Says that a text with wildcards names nothing.</summary>
    protected abstract string WhyNone(string text);

    /// <summary>Says that a text names several objects where one is meant.</summary>
    protected abstract string WhichOf(string text, IReadOnlyCollection<T> found);

    private object Several(object input)
    {
        if (TextOf(input) is { } text) return Find(text);
        return input is object[] items && Array.Exists(items, item => TextOf(item) is not null)
            ? items.SelectMany<object, object>(item => Several(item) is T[] found ? found : [item]).ToArray()
            : input;
    }

    private string? TextOf(object input) => Text(input is PSObject wrapped ? wrapped.BaseObject : input);
}
