using System.Runtime.InteropServices;
using System.Text.Json.Serialization;
using GuestMemory.Core.Kvm;

namespace GuestMemory.Core.VmControl;

/// <summary>Has stores to a guest physical address signal an eventfd, or ends that (crosvm's <c>IoEventUpdateRequest</c>).</summary>
/// <param name="Event">The eventfd.</param>
/// <param name="Address">The guest physical address.</param>
/// <param name="Datamatch">Which stores count.</param>
/// <param name="Register">Whether it begins or ends.</param>
public sealed record IoEventUpdateRequest(SafeHandle Event, [property: JsonPropertyName("addr")] ulong Address, Datamatch Datamatch, bool Register);
