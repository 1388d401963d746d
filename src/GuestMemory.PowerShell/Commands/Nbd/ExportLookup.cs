using GuestMemory.Core;
using GuestMemory.Core.Nbd;

namespace GuestMemory.PowerShell.Commands;

/// <summary>Exports by the name that was typed.</summary>
internal static class ExportLookup
{
    /// <exception cref="GuestMemoryException">ExportNotFound: a name without wildcards names none.</exception>
    public static MemoryExport[] ByName(string name) =>
        NameLookup.Find(Session.Exports, static export => export.Name, name, GuestMemoryError.ExportNotFound, "export", "Get-GuestMemoryExport");
}
