global using GuestMemory.Core;
global using GuestMemory.Core.Images;
global using GuestMemory.Core.Interop;
global using GuestMemory.Core.Kvm;
global using GuestMemory.Core.Nbd;
global using GuestMemory.Core.Linux;
global using GuestMemory.Core.Paging;
global using GuestMemory.Core.Processes;
global using GuestMemory.Core.Userfault;
global using GuestMemory.Core.VhostUser;
global using GuestMemory.Core.VmControl;
global using GuestMemory.Core.Xen;
global using static GuestMemory.Core.Tests.TestProcess;

// Descriptors, threads and the pool of huge pages belong to the whole process.
[assembly: Xunit.v3.Parallelization(Mode = Xunit.Sdk.ParallelMode.None)]
