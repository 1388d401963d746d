using System.Collections;
using System.Management.Automation;
using System.Management.Automation.Language;
using GuestMemory.Core;
using GuestMemory.Core.Xen;

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
            .Where(item => Begins(item.Text, word))
            .Select(item => new CompletionResult(Complete(item.Text), item.Text, CompletionResultType.ParameterValue, item.ToolTip));
    }

    /// <summary>Whether an item can be meant by what was typed.</summary>
    protected virtual bool Begins(string text, string word)
    {
        ArgumentNullException.ThrowIfNull(text);
        return text.StartsWith(word, StringComparison.OrdinalIgnoreCase);
    }

    /// <summary>What is typed for an item.</summary>
    protected virtual string Complete(string text)
    {
        ArgumentNullException.ThrowIfNull(text);
        return Quote(text);
    }

    /// <summary>An item as an argument, in quotes where it needs them.</summary>
    protected static string Quote(string text) => text.AsSpan().ContainsAny(" '\"`$();&|{}") ? $"'{text.Replace("'", "''", StringComparison.Ordinal)}'" : text;
}

/// <summary>
/// Offers the names of objects at the place where the objects themselves are expected: what is typed there binds to another parameter,
/// whose own completer answers as soon as a word is begun. After the name of the parameter only an object will do.
/// </summary>
public sealed class PositionCompleter<T> : IArgumentCompleter
    where T : ListCompleter, new()
{
    /// <inheritdoc/>
    public IEnumerable<CompletionResult> CompleteArgument(string commandName, string parameterName, string wordToComplete, CommandAst commandAst, IDictionary fakeBoundParameters)
    {
        ArgumentNullException.ThrowIfNull(commandAst);
        // Null is no answer. An empty list is one: PowerShell marks its end, and the line editor fails on a mark that others follow.
        return !string.IsNullOrEmpty(wordToComplete) || commandAst.CommandElements.OfType<CommandParameterAst>().Any(given => parameterName.StartsWith(given.ParameterName, StringComparison.OrdinalIgnoreCase))
            ? null!
            : new T().CompleteArgument(commandName, parameterName, wordToComplete, commandAst, fakeBoundParameters);
    }
}

/// <summary>Offers socket paths by their beginning, or by the name of the file alone, as it is typed in the socket's folder.</summary>
public abstract class SocketCompleter : ListCompleter
{
    /// <inheritdoc/>
    protected override bool Begins(string text, string word)
    {
        ArgumentNullException.ThrowIfNull(word);
        return base.Begins(text, word) || base.Begins(Path.GetFileName(text), word.StartsWith("./", StringComparison.Ordinal) ? word[2..] : word);
    }
}

/// <summary>Live regions where the objects themselves are expected: commands that give them.</summary>
public sealed class RegionCompleter : ListCompleter
{
    /// <inheritdoc/>
    protected override IEnumerable<(string Text, string ToolTip)> List() => Session.Regions.Select(region => (region.Name, region.ToString()));

    /// <inheritdoc/>
    protected override string Complete(string text) => $"(Get-MmapRegion {Quote(text)})";
}

/// <summary>Names of live regions.</summary>
public sealed class RegionNameCompleter : ListCompleter
{
    /// <inheritdoc/>
    protected override IEnumerable<(string Text, string ToolTip)> List() => Session.Regions.Select(region => (region.Name, region.ToString()));
}

/// <summary>Names of layouts of memory images, and what a range looks like.</summary>
public sealed class ImageLayoutCompleter : ListCompleter
{
    /// <inheritdoc/>
    protected override IEnumerable<(string Text, string ToolTip)> List() =>
        [.. ImageLayoutAttribute.Names.Select(static layout => (layout.Name, layout.Explanation)), ("0-3GiB", "A range: the first address, and the first behind it; several with commas")];
}

/// <summary>Names of live VMs.</summary>
public sealed class VmNameCompleter : ListCompleter
{
    /// <inheritdoc/>
    protected override IEnumerable<(string Text, string ToolTip)> List() => Session.Vms.Select(vm => (vm.Name, $"{vm.Slots.Count} slots, {Formatting.Size(vm.Memory.Size)}"));
}

/// <summary>Names of the domains of this Xen host.</summary>
public sealed class XenDomainNameCompleter : ListCompleter
{
    /// <inheritdoc/>
    protected override IEnumerable<(string Text, string ToolTip)> List() => Domains().Where(domain => domain.Name.Length > 0)
        .Select(domain => (domain.Name, $"domain {domain.Id}, {domain.State}, {Formatting.Size(domain.MemorySize)}"));

    /// <summary>The domains; none on a host that cannot list them, which the cmdlet itself says.</summary>
    internal static IReadOnlyList<XenDomain> Domains()
    {
        try
        {
            return XenDomain.GetAll();
        }
        catch (GuestMemoryException)
        {
            return [];
        }
    }
}

/// <summary>Numbers of the domains of this Xen host.</summary>
public sealed class XenDomainIdCompleter : ListCompleter
{
    /// <inheritdoc/>
    protected override IEnumerable<(string Text, string ToolTip)> List() => XenDomainNameCompleter.Domains()
        .Select(domain => (domain.Id.ToString(System.Globalization.CultureInfo.InvariantCulture), $"{domain.Name}, {domain.State}, {Formatting.Size(domain.MemorySize)}"));
}

/// <summary>Socket paths of live handlers.</summary>
public sealed class HandlerSocketCompleter : SocketCompleter
{
    /// <inheritdoc/>
    protected override IEnumerable<(string Text, string ToolTip)> List() => Session.Handlers.SelectMany(static handler => handler.Images.Select(image => (image.SocketPath, $"handler {handler.Id}: {image.MemoryPath}, {handler.State}")));
}

/// <summary>Slots of a VM whose pages are logged.</summary>
public sealed class LoggedSlotCompleter : ListCompleter
{
    /// <inheritdoc/>
    protected override IEnumerable<(string Text, string ToolTip)> List() => Session.Vms.SelectMany(vm => vm.Slots.Where(slot => slot.LogDirtyPages)
        .Select(slot => (slot.Slot.ToString(System.Globalization.CultureInfo.InvariantCulture), $"VM {vm.Name}, {Formatting.Hex(slot.GuestAddress)}, {Formatting.Size(slot.Size)}")));
}

/// <summary>Users of this host.</summary>
public sealed class UserCompleter : ListCompleter
{
    private const string Users = "/etc/passwd";

    /// <inheritdoc/>
    protected override IEnumerable<(string Text, string ToolTip)> List() => !File.Exists(Users) ? [] : File.ReadLines(Users)
        .Select(line => line.Split(':')).Where(fields => fields.Length > 2).Select(fields => (fields[0], $"user {fields[2]}"));
}

/// <summary>Groups of this host.</summary>
public sealed class GroupCompleter : ListCompleter
{
    private const string Groups = "/etc/group";

    /// <inheritdoc/>
    protected override IEnumerable<(string Text, string ToolTip)> List() => !File.Exists(Groups) ? [] : File.ReadLines(Groups)
        .Select(line => line.Split(':')).Where(fields => fields.Length > 2).Select(fields => (fields[0], $"group {fields[2]}"));
}

/// <summary>Numbers of live handlers.</summary>
public sealed class HandlerIdCompleter : ListCompleter
{
    /// <inheritdoc/>
    protected override IEnumerable<(string Text, string ToolTip)> List() => Session.Handlers.Select(handler => (handler.Id.ToString(System.Globalization.CultureInfo.InvariantCulture), $"{handler}: {handler.State}"));
}

/// <summary>Names of the images that handlers serve.</summary>
public sealed class UffdImageNameCompleter : ListCompleter
{
    /// <inheritdoc/>
    protected override IEnumerable<(string Text, string ToolTip)> List() => Commands.UffdImageLookup.All([]).Select(image => (image.Name, $"{image.MemoryPath} at {image.SocketPath}: {image.ConnectionCount} VMs, {image.State}"));
}

/// <summary>Names of the VMs that handlers serve.</summary>
public sealed class UffdVmNameCompleter : ListCompleter
{
    /// <inheritdoc/>
    protected override IEnumerable<(string Text, string ToolTip)> List() => Commands.UffdVmLookup.All(out _).Select(vm => (vm.Name, $"VM {vm.Id} of {vm.SocketPath}: process {vm.ProcessId}, {Formatting.Size(vm.MemorySize)}, {vm.State}"));
}

/// <summary>Numbers of the VMs that handlers serve.</summary>
public sealed class UffdVmIdCompleter : ListCompleter
{
    /// <inheritdoc/>
    protected override IEnumerable<(string Text, string ToolTip)> List() => Commands.UffdVmLookup.All(out _).Select(vm => (vm.Id.ToString(System.Globalization.CultureInfo.InvariantCulture), $"{vm.Name} of {vm.SocketPath}: process {vm.ProcessId}, {vm.State}"));
}

/// <summary>Numbers of processes.</summary>
public sealed class ProcessIdCompleter : ListCompleter
{
    /// <inheritdoc/>
    protected override IEnumerable<(string Text, string ToolTip)> List()
    {
        foreach (var process in System.Diagnostics.Process.GetProcesses().OrderBy(static process => process.Id))
        {
            using (process) yield return (process.Id.ToString(System.Globalization.CultureInfo.InvariantCulture), process.ProcessName);
        }
    }
}

/// <summary>Numbers of processes that run a VMM.</summary>
public sealed class VmmProcessIdCompleter : ListCompleter
{
    /// <inheritdoc/>
    protected override IEnumerable<(string Text, string ToolTip)> List()
    {
        foreach (var process in System.Diagnostics.Process.GetProcesses().OrderBy(static process => process.Id))
        {
            using (process)
            {
                if (Core.Processes.AttachedProcess.IsVmm(process.Id)) yield return (process.Id.ToString(System.Globalization.CultureInfo.InvariantCulture), process.ProcessName);
            }
        }
    }
}

/// <summary>Numbers of processes whose memory is tracked.</summary>
public sealed class TrackedProcessIdCompleter : ListCompleter
{
    /// <inheritdoc/>
    protected override IEnumerable<(string Text, string ToolTip)> List() => Session.Trackings.GroupBy(static tracker => tracker.ProcessId)
        .Select(static trackers => (trackers.Key.ToString(System.Globalization.CultureInfo.InvariantCulture), string.Join("; ", trackers)));
}

/// <summary>Addresses of memory that is tracked.</summary>
public sealed class TrackedAddressCompleter : ListCompleter
{
    /// <inheritdoc/>
    protected override IEnumerable<(string Text, string ToolTip)> List() => Session.Trackings.Select(static tracker => (Formatting.Hex(tracker.Address), tracker.ToString()));
}

/// <summary>Features of a host.</summary>
public sealed class FeatureCompleter : ListCompleter
{
    /// <inheritdoc/>
    protected override IEnumerable<(string Text, string ToolTip)> List() => Core.HostSupport.Probe().Select(feature => (feature.Feature, feature.Detail));
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

/// <summary>Socket paths of live services.</summary>
public sealed class ServiceSocketCompleter : SocketCompleter
{
    /// <inheritdoc/>
    protected override IEnumerable<(string Text, string ToolTip)> List() => Session.Services.Where(service => service.SocketPath is not null).Select(service => (service.SocketPath!, $"service {service.Id}: VM {service.VmName}, {service.State}"));
}

/// <summary>Numbers of live services.</summary>
public sealed class ServiceIdCompleter : ListCompleter
{
    /// <inheritdoc/>
    protected override IEnumerable<(string Text, string ToolTip)> List() => Session.Services.Select(service => (service.Id.ToString(System.Globalization.CultureInfo.InvariantCulture), $"{service.SocketPath}: {service.State}"));
}

/// <summary>Names of live back ends.</summary>
public sealed class BackendNameCompleter : ListCompleter
{
    /// <inheritdoc/>
    protected override IEnumerable<(string Text, string ToolTip)> List() => Session.Backends.Select(backend => (backend.Name, $"{backend.ImagePath} at {backend.SocketPath}: {backend.State}"));
}

/// <summary>Names of live exports of memory.</summary>
public sealed class ExportNameCompleter : ListCompleter
{
    /// <inheritdoc/>
    protected override IEnumerable<(string Text, string ToolTip)> List() => Session.Exports.Select(export => (export.Name, $"{export.Uri}: {export.ConnectionCount} clients"));
}

/// <summary>Region ids of what requests have registered.</summary>
public sealed class RegionIdCompleter : ListCompleter
{
    /// <inheritdoc/>
    protected override IEnumerable<(string Text, string ToolTip)> List() => Session.Vms.SelectMany(vm => vm.GetRegisteredMemory().Select(memory => (Formatting.Hex(memory.Key), $"VM {vm.Name}, slot {memory.Value.Slot}")));
}

/// <summary>Registers that have MMIO addresses, and how the others are written.</summary>
public sealed class AllocCompleter : ListCompleter
{
    /// <inheritdoc/>
    protected override IEnumerable<(string Text, string ToolTip)> List() => Session.Vms
        .SelectMany(vm => vm.GetMmioAllocations().Select(held => (held.Key.ToString(), $"VM {vm.Name}, {held.Value}")))
        .Append(("PciBar:00:00.0/0", "a register of a PCI device: PciBar:BUS:DEVICE.FUNCTION/BAR"));
}

/// <summary>Datamatches.</summary>
public sealed class DatamatchCompleter : ListCompleter
{
    /// <inheritdoc/>
    protected override IEnumerable<(string Text, string ToolTip)> List() =>
        [("AnyLength", "stores of any length"), ("U8", "stores of 1 byte; U8:0x7f, of this value"), ("U16", "stores of 2 bytes; U16:0x1337, of this value"), ("U32", "stores of 4 bytes; U32:5, of this value"), ("U64", "stores of 8 bytes; U64:5, of this value")];
}

/// <summary>Offers the images of the store whose directory was typed; below that nothing but file names.</summary>
public sealed class StoredImageCompleter : IArgumentCompleter
{
    /// <inheritdoc/>
    public IEnumerable<CompletionResult> CompleteArgument(string commandName, string parameterName, string wordToComplete, CommandAst commandAst, IDictionary fakeBoundParameters)
    {
        var word = wordToComplete?.Trim('\'', '"') ?? "";
        var at = word.LastIndexOf('/');
        // Another path would be relative to a location that a completer does not know. Null lets the shell offer files.
        if (at <= 0 || word[0] != '/' || !Directory.Exists(Path.Combine(word[..at], "images"))) return null!;
        return Directory.EnumerateDirectories(Path.Combine(word[..at], "images")).Select(static path => Path.GetFileName(path)).Order(StringComparer.Ordinal)
            .Where(name => name.StartsWith(word[(at + 1)..], StringComparison.OrdinalIgnoreCase))
            .Select(name => $"{word[..at]}/{name}").Select(static text => new CompletionResult(text, Path.GetFileName(text), CompletionResultType.ParameterValue, text));
    }
}
