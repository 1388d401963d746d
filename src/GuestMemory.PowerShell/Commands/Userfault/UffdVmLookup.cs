using System.Globalization;
using System.Management.Automation;
using GuestMemory.Core;
using GuestMemory.Core.Userfault;

namespace GuestMemory.PowerShell.Commands;

/// <summary>VMs of handlers by what was typed: a name, with wildcards, or a number.</summary>
internal static class UffdVmLookup
{
    /// <exception cref="GuestMemoryException">VmNotFound: a name without wildcards, or a number, is that of no VM. ControlFailed: the handler that may have it does not answer.</exception>
    public static UffdServedVm[] Find(string text)
    {
        var all = All(out var failure);
        UffdServedVm[] found = int.TryParse(text, NumberStyles.None, CultureInfo.InvariantCulture, out var id) ? [.. all.Where(vm => vm.Id == id)] : ByName(all, text);
        if (found.Length > 0) return found;
        if (failure is not null) throw failure;
        return WildcardPattern.ContainsWildcardCharacters(text) ? found : throw NotFound(text);
    }

    public static UffdServedVm[] ByName(IEnumerable<UffdServedVm> vms, string name)
    {
        var pattern = WildcardPattern.Get(name, WildcardOptions.IgnoreCase);
        return [.. vms.Where(vm => pattern.IsMatch(vm.Name))];
    }

    /// <summary>The VMs of all handlers of this user.</summary>
    /// <param name="failure">What is wrong with a handler that does not answer; null where all do.</param>
    public static List<UffdServedVm> All(out GuestMemoryException? failure)
    {
        failure = null;
        var all = new List<UffdServedVm>();
        foreach (var handler in Session.Handlers)
        {
            try
            {
                all.AddRange(handler.GetVms());
            }
            catch (GuestMemoryException exception)
            {
                failure = exception;
            }
        }

        return all;
    }

    public static GuestMemoryException NotFound(string text) =>
        new(GuestMemoryError.VmNotFound, $"No handler of this user serves a VM '{text}'. 'Get-UffdVm' lists the VMs that are served.");
}
