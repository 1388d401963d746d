using System.Collections;
using System.Management.Automation;
using System.Management.Automation.Language;

namespace GuestMemory.PowerShell.Binding;

/// <summary>Offers what a list holds that begins with what was typed.</summary>
public abstract class ListCompleter : IArgumentCompleter
{
    /// <summary>What can be offered, each with its explanation.</summary>
    protected abstract IEnumerable<(string Text, string ToolTip)> List();

    /// <inheritdoc/>
    public IEnumerable<CompletionResult> CompleteArgument(string commandName, string parameterName, string wordToComplete, CommandAst commandAst, IDictionary fakeBoundParameters)
    {
        var word = wordToComplete?.Trim('\'', '"') ?? "";
        return List()
            .Where(item => item.Text.StartsWith(word, StringComparison.OrdinalIgnoreCase))
            .Select(item => new CompletionResult(Quote(item.Text), item.Text, CompletionResultType.ParameterValue, item.ToolTip));
    }

    private static string Quote(string text) => text.AsSpan().ContainsAny(" '\"`$();&|{}") ? $"'{text.Replace("'", "''", StringComparison.Ordinal)}'" : text;
}

/// <summary>Names of live regions.</summary>
public sealed class RegionNameCompleter : ListCompleter
{
    /// <inheritdoc/>
    protected override IEnumerable<(string Text, string ToolTip)> List() => Session.Regions.Select(region => (region.Name, region.ToString()));
}

/// <summary>Names of live VMs.</summary>
public sealed class VmNameCompleter : ListCompleter
{
    /// <inheritdoc/>
    protected override IEnumerable<(string Text, string ToolTip)> List() => Session.Vms.Select(vm => (vm.Name, $"{vm.Slots.Count} slots, {Formatting.Size(vm.Memory.Size)}"));
}

/// <summary>Socket paths of live handlers.</summary>
public sealed class HandlerSocketCompleter : ListCompleter
{
    /// <inheritdoc/>
    protected override IEnumerable<(string Text, string ToolTip)> List() => Session.Handlers.Select(handler => (handler.SocketPath, $"handler {handler.Id}: {handler.MemoryPath}, {handler.State}"));
}

/// <summary>Numbers of live handlers.</summary>
public sealed class HandlerIdCompleter : ListCompleter
{
    /// <inheritdoc/>
    protected override IEnumerable<(string Text, string ToolTip)> List() => Session.Handlers.Select(handler => (handler.Id.ToString(System.Globalization.CultureInfo.InvariantCulture), $"{handler.SocketPath}: {handler.State}"));
}

/// <summary>Encoding names.</summary>
public sealed class EncodingCompleter : ListCompleter
{
    /// <inheritdoc/>
    protected override IEnumerable<(string Text, string ToolTip)> List() => EncodingNameAttribute.Names.Select(name => (name, name));
}

/// <summary>Huge page sizes of this host.</summary>
public sealed class HugePageSizeCompleter : ListCompleter
{
    /// <inheritdoc/>
    protected override IEnumerable<(string Text, string ToolTip)> List() => Core.HugePages.Pools().Select(pool => (Formatting.Size(pool.PageSize).Replace(" ", "", StringComparison.Ordinal), $"{pool.Free} of {pool.Total} pages are free"));
}
